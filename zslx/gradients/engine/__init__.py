"""How exact group gradients come out of one backward.

Read sources and uses (which operation uses which parameter in the forward), nodes and tape (the backward that keeps
sequences apart), contributions (gradients kept in factors), reduction (sums and Gramians of them); then loss_batch,
token_sample and token_pass for gradients of single tokens. Only zslx.gradients imports it.
"""
