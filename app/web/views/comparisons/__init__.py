"""Pages of comparisons: runs with their curves and configs, and evaluations row by row."""
