"""The training loop, and the run folder around it.

Read loop first: it is the whole story; built_run has what a run is made of, and what of it is kept (saver writes it).
train is the folder around it. course says what a run asks for; pack, with stack and stacked_pass, answers for several
runs at once, sequence_surgery where they combine gradients of groups. gradient_pass computes the gradient of a step
(step_gradient): loss_pass makes its losses and weights them, surgery combines gradients of groups, group_weights weighs
these, scale has what is recorded of a combined gradient. control_set has what adaptive methods may know of their own
training; numbers are those that a device still has, clock tells where the seconds go, malloc keeps freed memory.
"""
