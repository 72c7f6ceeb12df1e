"""Which trial won and how sure that is: pure functions of a sweep and its runs."""
