"""The worker's host: the worker, its devices, leases and child processes."""
