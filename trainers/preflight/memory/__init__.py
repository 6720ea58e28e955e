"""The memory that a training stage needs, compared with that of hosts."""
