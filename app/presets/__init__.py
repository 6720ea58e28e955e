"""Presets: named settings of training stages."""
