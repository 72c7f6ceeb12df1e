"""The embedded server of a home, as clients see it: start and find it, its key, its address, login links."""
