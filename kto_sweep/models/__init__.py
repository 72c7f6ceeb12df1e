"""Base models, without torch: presets, architecture, hub files, tokenizer, the tiny model's recipe."""
