"""Embeddings by our own engine: the model, its pooling, the thread that batches texts, and its server."""
