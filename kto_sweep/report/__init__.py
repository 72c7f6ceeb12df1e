"""A comparison as an HTML report, as a PNG, and as a saved W&B workspace."""
