"""Methods that choose the length of sequences, or which windows a step reads."""
