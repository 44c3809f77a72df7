"""The transformer, its per-token losses, and the default optimizer and schedule.

Read transformer, losses, weights, optimization. Imports settings and batches only.
"""
