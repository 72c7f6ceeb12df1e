"""Which trial won, how sure that is, and how people see it."""
