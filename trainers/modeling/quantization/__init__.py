"""Bases in 4 bits: how they are quantized, and how far the published model is from the trained one."""
