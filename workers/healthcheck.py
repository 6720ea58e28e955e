"""Whether the worker of a container is alive: exit with 0 if its last heartbeat is recent.

python -m workers.healthcheck /tmp/heartbeat

A worker listens on no port. It writes TUNESMITH_HEARTBEAT_FILE after each heartbeat that reached the
database, so that this check needs neither the database nor a package, and takes 20 ms.
"""

import sys
import time
from pathlib import Path

MAX_MISSED_HEARTBEATS = 3


def write_heartbeat(path: Path, heartbeat_seconds: float) -> None:
    """Write until when the worker counts as alive without another heartbeat."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(f"{time.time() + MAX_MISSED_HEARTBEATS * heartbeat_seconds}\n", encoding="utf-8")
    temporary.replace(path)


def main(arguments: list[str]) -> int:
    """Return the exit status, and print why a worker does not count as alive."""
    try:
        late_seconds = time.time() - float(Path(arguments[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"no heartbeat yet: {error}")  # noqa: T201
        return 1
    if late_seconds > 0:
        print(f"the heartbeat is {late_seconds:.0f} s late")  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
