"""Calls of tools, in the forms in which families of models write them."""
