"""What a run leaves on disk: one directory, one SQLite file, one transaction a round."""
