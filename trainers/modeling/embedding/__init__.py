"""Embedding models: the files of sentence-transformers, and the recipe that they describe."""
