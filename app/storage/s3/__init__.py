"""Artifacts in a bucket of S3, or of a store with its API, by boto3 alone."""
