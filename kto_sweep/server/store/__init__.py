"""The server's database: one SQLite file, one module per kind of record."""
