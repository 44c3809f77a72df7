"""What is concluded from run records, and how it is shown. Needs no torch."""
