"""From a data file to token ids: read, tokenise, split, pair."""
