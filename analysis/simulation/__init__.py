"""Studies with known effects, to see how often the rule of evidence errs.

Read study (writes simulated studies), error_rates. Only tests and benchmarks import it.
"""
