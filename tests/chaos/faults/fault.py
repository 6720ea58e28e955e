"""A fault: something that breaks, for a moment or for good, while the service works."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.platforms import Platform, PlatformName, can_mount

BOTH = frozenset(PlatformName)
EMBEDDED = frozenset({PlatformName.embedded})
TEAM = frozenset({PlatformName.team})


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    inject: Callable[[Platform, random.Random], bool]
    """Inject the fault, wait, and undo it; returns False if there was nothing to break."""
    weight: int
    """How often it occurs, relative to the others."""
    platforms: frozenset[PlatformName] = BOTH
    resource: str | None = None
    """Faults of one resource wait for each other."""
    explain_missing: Callable[[Platform], str | None] = lambda platform: None
    """Return why the fault cannot be injected on this host; None if it can."""


def require_mounts(platform: Platform) -> str | None:
    """Explain that this host lets nobody but root mount file systems, or not even root."""
    return None if can_mount() else "only root can mount file systems, and not in every container"
