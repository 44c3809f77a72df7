"""`zslx compare`, `report`, `figures`, `archive` and `verify`, imported by the command line when they are asked for."""
