from zslx.gradients.groups import GroupStats, sequence_stats

__all__ = ["GroupStats", "sequence_stats"]
