"""What a worker of another host may do in PostgreSQL and Redis."""
