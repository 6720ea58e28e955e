"""The program of a batch: it sends the requests of a file to engines, and resumes after any interruption."""
