"""A comparison drawn: an HTML page, a PNG, a saved W&B workspace."""
