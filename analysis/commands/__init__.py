"""`zslx compare`, `zslx report` and `zslx figures`, imported by the command line when they are asked for."""
