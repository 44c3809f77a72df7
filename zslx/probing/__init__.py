"""Measurements on the checkpoints of finished runs, and what a step with an intervention costs.

Read probe, figures, step_cost. Imports training; only commands and tests import it.
"""
