"""A base model's facts without torch: presets, sizes, hub files, tokenizer, the tiny model's recipe."""
