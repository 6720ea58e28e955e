"""Failures of a sweep: each is reported, and the other hosts are still handled."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from app.hosts.lifecycle import LeaseTaken
from workers.clouds.protocol import CloudError

logger = logging.getLogger(__name__)


@contextmanager
def report(faults: list[str], what: str) -> Iterator[None]:
    """Add a failure of the body to the faults, also an unexpected one; only LeaseTaken ends the sweep."""
    try:
        yield
    except LeaseTaken:
        raise
    except CloudError as error:
        faults.append(f"{what}: {error.message}")
    except Exception as error:
        # A response of another shape, or a value that cannot be used: its text may contain anything.
        logger.exception("%s", what)
        faults.append(f"{what}: an unexpected {type(error).__name__}, see the log of this worker.")
