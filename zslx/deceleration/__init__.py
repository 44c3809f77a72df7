"""Where a loss curve decelerates: L_d, t_d and r_d with intervals, or why there are none. Torch-free.

Read curve_file and binning (the points), broken_power_law (the form), single_fit, residual_noise, break_choice (is
there a break?), intervals, and fit, which puts them together; slopes and forecast need no break. planted_curves makes
curves with known parameters. Imports nothing else of zslx; analysis and commands import it.
"""
