"""Promotions: starting, measuring, reading and aborting them; a worker carries them out."""
