"""Reports of a gateway process to the service."""
