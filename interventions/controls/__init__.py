"""What a method is compared with: the baseline, cosine decay, averaging, random weights, placebos."""
