"""Client side of a home's embedded server: start it, find it, read its key, make login links."""
