"""The engines that are stopped to make room: those that were idle for longest, if that suffices."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class IdleEngine:
    """An engine that may be stopped: all of its deployments are ready, and none was requested lately."""

    key: str
    n_gpus: int
    unused_seconds: float
    """Since the last request to any of its deployments."""


def choose_engines(engines: Sequence[IdleEngine], n_needed: int, n_free: int) -> list[IdleEngine]:
    """Return the engines to stop so that `n_needed` GPUs become free; none if they are, or cannot be."""
    chosen: list[IdleEngine] = []
    for engine in sorted(engines, key=lambda one: one.unused_seconds, reverse=True):
        if n_free >= n_needed:
            break
        chosen.append(engine)
        n_free += engine.n_gpus
    return chosen if n_free >= n_needed else []
