"""Files of predictions that are scored without a model."""
