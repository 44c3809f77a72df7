"""Methods that weigh or combine the gradients of groups of tokens."""
