"""The profiles of property tests: the same examples in each run of CI, and many others by hand."""

from hypothesis import settings

QUICK = settings(max_examples=150, derandomize=True, deadline=None, database=None)
THOROUGH = settings(max_examples=20_000, deadline=None, database=None)
