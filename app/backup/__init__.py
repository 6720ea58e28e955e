"""Backups of the database and the artifacts together, and their restoration."""
