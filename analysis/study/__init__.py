"""A study read from its records: arms, trials, and what is measured of each trial.

Read load, join, measures, step_records, doublings. Imports the torch-free part of zslx.
"""
