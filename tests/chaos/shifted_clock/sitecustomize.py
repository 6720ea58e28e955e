"""Repairs `time.sleep` under libfaketime, which shifts deadlines even where the monotonic clock is real."""

import select
import time
from typing import SupportsFloat


def _sleep(seconds: SupportsFloat) -> None:
    select.select([], [], [], float(seconds))


time.sleep = _sleep  # type: ignore[assignment]
