"""The list of datasets with the upload, and the pages of one dataset."""
