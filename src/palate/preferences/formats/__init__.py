"""The formats: how a row of each becomes a prompt, answers and what was said about them."""
