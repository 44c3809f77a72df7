"""The training loop, and the run folder around it.

Read loop first: it is the whole story; built_run has what a run is made of, and what of it is kept (saver writes it).
train is the folder around it. course says what a run asks for; pack, with stack and stacked_pass, answers for several
runs at once, sequence_surgery where they combine gradients of groups. step_gradient computes the gradient of a step,
group_weights weighs groups, scale has what is recorded of a combined gradient, control_set what adaptive methods may
know of their own training; numbers are those that a device still has, clock tells where the seconds go, malloc keeps
freed memory.
"""
