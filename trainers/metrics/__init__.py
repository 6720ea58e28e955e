"""Pure functions that judge answers and say how sure a score is."""
