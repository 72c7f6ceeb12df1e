"""What the server keeps: one SQLite file, one module per kind of record."""
