"""Faster forms of the operations of a layer: compiled by torch, or by kernels that others wrote."""
