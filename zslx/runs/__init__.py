"""What a run leaves behind, and what it is known by.

Read records (the folder and its files), integrity (whether they are whole), checkpoints, identity (what decides a
run's numbers, hashed), provenance (versions and machine, recorded only) and load (a run's model). records and integrity
are torch-free: analysis reads runs through them alone.
"""
