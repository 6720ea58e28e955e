"""What every program shares: its command line, run directory, events and errors."""
