"""The next trial of a sweep: pure functions of its space and of what was tried."""
