"""Methods that choose how much of each domain a step reads."""
