"""`zslx compare` and `zslx report`, imported by the command line when they are asked for."""
