"""The leaderboard: results of training methods under one protocol, each row from an archive that verifies.

Read protocol (ZSL-bench, and how a study departs from it), entries (a study as an entry), board (the page).
"""
