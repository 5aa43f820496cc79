"""The command line: verbs, flags, progress, exit codes. No logic."""
