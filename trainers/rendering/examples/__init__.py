"""The rendered rows of each training stage, with counts that show how the data fits the model."""
