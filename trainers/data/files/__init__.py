"""Files of rows: JSON Lines, aligned text and TMX."""
