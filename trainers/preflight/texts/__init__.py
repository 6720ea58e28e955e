"""Findings in the meaning of texts: leftovers and damage in messages, and answers that teach nothing."""
