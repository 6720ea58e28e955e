"""The page of an alias, and the form of its promotions."""
