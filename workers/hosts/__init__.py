"""This host: the worker, its devices, leases and child processes."""
