"""The command `python -m workers doctor`."""

import json
from typing import Annotated

import typer

from app.scheduling.startup import load_settings
from workers.doctor.check_result import CheckState
from workers.doctor.report import inspect
from workers.tunnels.tunnel import TunnelBroken
from workers.tunnels.worker_tunnel import hold_worker_tunnel


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check drivers, packages, memory, disks, clock, services and engines, and print how to fix each.

    The exit status is 1 if a check found an error.
    """
    settings = load_settings()
    try:
        with hold_worker_tunnel(settings):
            report = inspect(settings)
    except (TunnelBroken, ValueError) as error:
        raise SystemExit(f"The tunnel to the control plane does not open: {error}") from error
    print(json.dumps(report.to_row(), indent=2, ensure_ascii=False) if as_json else report.format_table())
    raise typer.Exit(1 if report.state is CheckState.error else 0)
