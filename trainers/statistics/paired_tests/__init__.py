"""Tests of the difference of two models on the same rows."""
