"""One run without a sweep: what it trains and where it belongs."""
