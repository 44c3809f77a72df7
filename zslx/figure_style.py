"""Colours and names that all figures share. Torch-free, and imports nothing that draws.

The colours are Okabe and Ito's, safe for colour-blind readers, adjusted for contrast on light and on dark backgrounds.
The first, a grey, is the baseline's.
"""

PALETTE = ("#50565f", "#0072b2", "#c84f00", "#008560", "#a8508a", "#8a6a10", "#4b55c4", "#1f7f8c")
# The terms of the decomposition of the loss (zslx/instruments/rank_decomposition.py), by their keys in the records.
TERMS = {"ce": "cross-entropy", "ee": "error-entropy", "sa": "self-alignment", "conf": "confidence"}
