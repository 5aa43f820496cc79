"""What lies on disk: atomic writes, hashes, the ledger of rows, run directories, hub files."""
