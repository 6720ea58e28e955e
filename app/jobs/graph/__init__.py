"""The graph of a job: what its stages need, and the status that follows from its runs."""
