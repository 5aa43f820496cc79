"""Checks of preference data: what is wrong with them, before they cost money."""
