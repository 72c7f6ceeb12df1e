"""Ranking of a sweep's trials and the verdict on it: pure functions of a sweep and its runs."""
