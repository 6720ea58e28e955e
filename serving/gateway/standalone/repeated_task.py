"""Work that a standalone gateway repeats, whatever it raises."""

import asyncio
import logging
from collections.abc import Callable

logger = logging.getLogger("tunesmith.gateway")

# The last error of each work that fails, which /health shows.
PROBLEMS: dict[str, str] = {}


async def repeat_task(name: str, action: Callable[[], object], seconds: float) -> None:
    """Call a function at an interval until the task is cancelled.

    A failure is logged once, and is in PROBLEMS until the function succeeds again.
    """
    while True:
        try:
            action()
        except Exception as error:
            if name not in PROBLEMS:
                logger.exception("%s failed", name)
            PROBLEMS[name] = f"{type(error).__name__}: {error}"
        else:
            PROBLEMS.pop(name, None)
        await asyncio.sleep(seconds)
