"""Files to raw rows, in bounded memory."""
