"""Methods that weigh the losses of tokens or sequences, or add a term to the loss."""
