"""What a worker and a guard tell each other at the start and the end of a program."""

import json
from dataclasses import dataclass
from typing import Self

from workers.hosts.resource_limits import ResourceLimits

EXIT_START_FAILED = 127
EXIT_SIGNAL_BASE = 128
OWN_PREFIX = "TUNESMITH_"
"""The beginning of the variables that only our own programs read, and only when they need them."""


@dataclass(frozen=True)
class GuardOptions:
    """The options of the guard of one program."""

    seconds: float
    """How long the program may run without a renewal of its lease."""
    limits: ResourceLimits
    folder: str
    """The folder in which the program starts."""
    use_kernel: bool
    """Whether the kernel can find and end the program's processes, as on Linux."""

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the options that `start_guarded_process` has written."""
        values = json.loads(text)
        return cls(**values | {"limits": ResourceLimits(**values["limits"])})


@dataclass(frozen=True)
class ForkRequest:
    """A program that the fork server must start."""

    module: str
    arguments: list[str]
    variables: dict[str, str]
    """Variables of our own, in addition to the server's environment."""
    options: str
    """The options of its guard, as JSON."""
    marker: str
