"""Presets: settings of training stages that a job may name."""
