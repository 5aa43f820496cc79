"""Model card and HTML report, from results given to them; nothing is computed here."""
