"""Pages of evaluations: the list, one evaluation with its rows, and the leaderboard of a dataset."""
