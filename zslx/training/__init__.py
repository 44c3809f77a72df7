"""The training loop, and the run folder around it.

Read loop first: it is the whole story. train is the folder around it, course and pack say who computes a step's
gradient, step_gradient how, control_set what adaptive methods may know of their own training; clock tells where the
seconds go, malloc keeps freed memory.
"""
