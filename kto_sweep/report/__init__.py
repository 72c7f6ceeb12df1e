"""Draws a comparison as an HTML report, a PNG, or a saved W&B workspace."""
