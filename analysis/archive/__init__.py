"""A study as one file that somebody else can check.

Read container (the file and its checksums), write (what goes in), identities (what was hashed), arms (what study.json
says of it), records, verify. Nothing of an archive is run.
"""
