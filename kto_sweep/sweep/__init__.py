"""A registered sweep, on W&B or the embedded server: made, read, gone on with, copied."""
