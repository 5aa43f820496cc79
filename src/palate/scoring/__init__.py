"""Text in, rewards out, under a token budget."""
