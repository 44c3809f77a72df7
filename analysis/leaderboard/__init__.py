"""The leaderboard: what methods came to under one protocol, each row from an archive that verifies.

Read protocol (ZSL-bench, and how a study departs from it), entries (a study as an entry), board (the page).
"""
