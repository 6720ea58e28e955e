"""Conversion of uploaded CSV, Parquet and JSON array files to JSON Lines, in constant memory.

Row n of the source becomes line n of the result, so that a fault names a row that a person can find.
"""
