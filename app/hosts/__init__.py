"""Hosts in clouds, as rows; a worker with the keys of a cloud keeps the machines as the rows say."""
