"""Filters of rows and of translation pairs; each yields the rows it keeps and records those it drops."""
