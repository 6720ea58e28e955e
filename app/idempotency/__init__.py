"""Requests that clients repeat: what one of them has created is not created again."""
