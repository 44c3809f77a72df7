"""The transformer, its per-token losses, and the default optimizer and schedule.

Read transformer, losses, optimization. Imports settings and batches only.
"""
