"""The profiles of property tests: the same examples in each run of CI, and many others by hand."""

from hypothesis import Phase, settings

QUICK = settings(max_examples=150, derandomize=True, deadline=None, database=None)
# Without the phase that explains a failure, which traces every line on Python 3.11.
PHASES = [Phase.explicit, Phase.generate, Phase.shrink]
THOROUGH = settings(max_examples=3_000, derandomize=False, deadline=None, database=None, phases=PHASES)
