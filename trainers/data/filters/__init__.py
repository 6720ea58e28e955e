"""Filters of rows and of translation pairs; each passes on what it keeps and reports what it drops."""
