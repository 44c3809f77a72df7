"""Methods that act where the gradients of single tokens oppose each other."""
