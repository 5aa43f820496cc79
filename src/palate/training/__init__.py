"""The trainer and its guards."""
