"""The schedule: which fault occurs when. It depends on the seed only."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.faults import clock, postgres, processes, redis, storage
from tests.chaos.faults.fault import Fault
from tests.chaos.platforms import Platform, PlatformName

ALL = [*processes.FAULTS, *postgres.FAULTS, *redis.FAULTS, *storage.FAULTS, *clock.FAULTS]


@dataclass(frozen=True)
class ScheduledFault:
    """A fault at a time, in seconds since the start, with the seed of its random choices."""

    fault: Fault
    at: float
    seed: str

    def inject(self, platform: Platform) -> bool:
        """Inject the fault; return whether there was something to break."""
        return self.fault.inject(platform, random.Random(self.seed))


def create_schedule(
    platform: PlatformName, seed: int, seconds: float, gap_seconds: float
) -> list[ScheduledFault]:
    """Return the faults of a run, with random gaps whose mean is `gap_seconds`."""
    choose = random.Random(f"faults {seed}")
    faults = [fault for fault in ALL if platform in fault.platforms]
    schedule: list[ScheduledFault] = []
    at = choose.expovariate(1 / gap_seconds)
    while at < seconds:
        (fault,) = choose.choices(faults, weights=[fault.weight for fault in faults])
        schedule.append(ScheduledFault(fault, at, f"{seed} {len(schedule)}"))
        at += choose.expovariate(1 / gap_seconds)
    return schedule


def explain_skipped(platform: Platform, faults: Sequence[Fault] = ALL) -> dict[str, str]:
    """Return the faults that cannot be injected on this host, and why."""
    reasons = {
        fault.name: fault.explain_missing(platform) for fault in faults if platform.name in fault.platforms
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}
