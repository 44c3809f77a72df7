"""Methods that replace the optimizer or act on the learning rate."""
