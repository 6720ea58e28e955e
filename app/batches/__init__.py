"""Batches: the noun behind OpenAI's Batch API. The work is a run of the stage `batch`."""
