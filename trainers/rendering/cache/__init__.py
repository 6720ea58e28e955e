"""Datasets that are rendered and tokenized once per host, and mapped into the memory of every rank."""
