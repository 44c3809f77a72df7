"""Finds where a loss curve decelerates: L_d, t_d and r_d with intervals, or why they are not given. Torch-free.

Read loss_curve and curve_file (the data), broken_power_law (the form), binning, residual_noise and single_fit (one
fit), intervals, early_cut, break_choice and break_status (is there a break, is it identified?), then fit, which puts
them together. early_phase finds the cut that the data ask for. slopes and forecast need no break. planted_curves makes
curves with known parameters, and scaling_law is about model sizes. Imports nothing else of zslx; analysis, probing and
commands import it.
"""
