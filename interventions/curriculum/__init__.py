"""Methods that choose the length of sequences, which windows a step reads, or how many layers are in use."""
