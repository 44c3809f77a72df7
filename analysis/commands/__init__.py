"""`zslx compare`, `report`, `figures`, `import`, `archive`, `verify` and `leaderboard`, imported when asked for."""
