"""Answers that are stored after their last token, by a gateway with a store."""
