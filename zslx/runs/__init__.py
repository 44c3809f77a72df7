"""What a run leaves behind, and what it is known by.

Read json_files (how files are written), records (the folder and its files), integrity (whether they are whole),
digest (how an identity is hashed), timing (what seconds come to), checkpoints, identity (what decides a run's numbers),
provenance (versions and machine, recorded only) and load (a run's model). The first five are torch-free: analysis reads
runs through them alone.
"""
