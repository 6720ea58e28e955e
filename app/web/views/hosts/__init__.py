"""Hosts and queues: what each host has and runs, what waits for a queue, and machines of clouds."""
