"""One config per stage."""
