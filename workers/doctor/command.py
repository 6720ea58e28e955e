"""The command `python -m workers doctor`."""

import json
from typing import Annotated

import typer

from app.scheduling.startup import load_settings
from workers.doctor.check_result import CheckState
from workers.doctor.report import inspect


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check drivers, packages, memory, disks, clock, services and engines, and print how to fix each.

    The exit status is 1 if a check found an error.
    """
    report = inspect(load_settings())
    print(json.dumps(report.to_row(), indent=2, ensure_ascii=False) if as_json else report.format_table())
    raise typer.Exit(1 if report.state is CheckState.error else 0)
