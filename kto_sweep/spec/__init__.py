"""Sweep files: read, checked, generated."""
