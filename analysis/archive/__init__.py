"""A study as one file that somebody else can check.

Read container (the file and its checksums), write (what goes in), identities, verify. Nothing of an archive is run.
"""
