"""The training loop.

Read loop first: it is the whole story. step_gradient computes the gradient of one step, control_set what adaptive
methods may know of their own training, clock where the seconds go, malloc keeps freed memory.
"""
