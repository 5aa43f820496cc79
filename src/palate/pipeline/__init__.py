"""Runs from file to report."""
