"""How the text and the fields of a config are read, and what is said of those that cannot be."""
