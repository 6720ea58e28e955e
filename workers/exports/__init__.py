"""What a worker adds to the output of an export: its model card, and the upload to the hub."""
