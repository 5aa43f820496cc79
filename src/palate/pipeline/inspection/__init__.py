"""What `palate data inspect` counts, observes and shows."""
