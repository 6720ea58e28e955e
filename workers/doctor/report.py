"""The report of all checks of a host: for the terminal, for the worker's row, and as an exit status."""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from app.scheduling.incidents import describe_error
from app.settings import Settings
from workers.doctor.capacity import check_capacity
from workers.doctor.check_result import CheckResult, CheckState
from workers.doctor.engines import check_engines
from workers.doctor.hardware import check_hardware
from workers.doctor.packages import check_packages
from workers.doctor.secret_files import check_secret_files
from workers.doctor.services import check_services

MAX_CHECKS = 32


class HostReport(BaseModel):
    """The checks of a host; each text of one is bounded, and so is their number."""

    state: CheckState
    checked_at: datetime
    seconds: float
    checks: list[CheckResult]

    def to_row(self) -> dict[str, Any]:
        """Return the report as JSON values for the worker's row."""
        return self.model_dump(mode="json")

    def format_table(self) -> str:
        """Return the report as lines for a terminal."""
        width = max(len(check.name) for check in self.checks)
        lines = list(_format_lines(self.checks, width))
        counts = {state: sum(check.state is state for check in self.checks) for state in CheckState}
        summary = ", ".join(f"{count} {_plural(state, count)}" for state, count in counts.items())
        return "\n".join([*lines, "", f"{summary} ({self.seconds:.1f} s)"])


def inspect(settings: Settings) -> HostReport:
    """Run all checks; one that fails unexpectedly is an error of the report, not of the caller."""
    started = time.monotonic()
    groups: tuple[tuple[str, Callable[[], Iterable[CheckResult]]], ...] = (
        ("hardware", lambda: check_hardware(settings)),
        ("packages", check_packages),
        ("capacity", lambda: check_capacity(settings)),
        ("secret files", lambda: check_secret_files(settings)),
        ("services", lambda: check_services(settings)),
        ("engines", lambda: check_engines(settings)),
    )
    checks = [check for name, group in groups for check in _run_group(name, group)][:MAX_CHECKS]
    order = list(CheckState)
    return HostReport(
        state=max((check.state for check in checks), key=order.index),
        checked_at=datetime.now(UTC),
        seconds=round(time.monotonic() - started, 1),
        checks=checks,
    )


def _run_group(name: str, group: Callable[[], Iterable[CheckResult]]) -> Iterator[CheckResult]:
    try:
        yield from group()
    except Exception as error:
        # The other checks are the reason why somebody runs this.
        yield CheckResult.error(
            name, f"the checks ended early: {describe_error(error)}", "Report this fault."
        )


def _format_lines(checks: Iterable[CheckResult], width: int) -> Iterator[str]:
    for check in checks:
        yield f"{check.state:<8} {check.name:<{width}}  {check.found}"
        if check.fix:
            yield f"{'':<8} {'':<{width}}  → {check.fix}"


def _plural(state: CheckState, count: int) -> str:
    return f"{state}s" if count != 1 and state is not CheckState.ok else str(state)
