"""Runs in other people's tools, wandb and TensorBoard: always from the records, while they are written or afterwards.

Read follow (a file that grows), rows (what is logged of a step), wandb_run and event_files (two sinks), stream (feeds
sinks while runs train), summary (what a finished run came to).
"""

MODES = ("off", "offline", "online")  # of wandb
