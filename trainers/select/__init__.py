"""The program of a selection, which keeps the best run of a sweep."""
