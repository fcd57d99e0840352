"""From text to batches: sources, tokens, shards, and which peer reads what."""
