"""Methods that steer the run by what they measure of it."""
