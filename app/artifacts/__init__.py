"""Artifacts over HTTP, for workers whose host reaches neither the bucket nor the shared file system."""
