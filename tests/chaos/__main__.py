"""Break an installation of the service while it works, and check that it keeps its promises.

python -m tests.chaos --minutes 30 --seed 1 --platform team

The exit status is 1 if a promise was broken, and 2 if the host lacks what the platform needs.
"""

import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Annotated

import pytest
import typer

from tests.chaos import checker
from tests.chaos.faults.schedule import ScheduledFault, create_schedule, explain_skipped
from tests.chaos.ledger import read_ledger
from tests.chaos.load import Load
from tests.chaos.platforms import Platform, PlatformName, create_platform
from tests.chaos.report import Report

MAX_CONCURRENT_FAULTS = 3


def main(
    platform: Annotated[PlatformName, typer.Option(help="Kind of installation.")],
    minutes: Annotated[float, typer.Option(help="Time during which faults are injected.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the schedule of faults, and of the jobs.")] = 1,
    gap_seconds: Annotated[float, typer.Option(help="Mean time between two faults.")] = 3,
    clients: Annotated[int, typer.Option(help="Jobs in progress at a time.")] = 6,
    drain_seconds: Annotated[
        float, typer.Option(help="Time after the last fault in which every job must finish.")
    ] = 900,
    json: Annotated[Path | None, typer.Option(help="File to which the report is written as JSON.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder to which the logs and the ledger are copied.")
    ] = None,
) -> None:
    """Break an installation of the service while it works, and check that it keeps its promises."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-chaos-", ignore_cleanup_errors=True) as folder:
        try:
            report = run(platform, Path(folder), minutes, seed, gap_seconds, clients, drain_seconds)
        except pytest.skip.Exception as missing:
            print(missing, file=sys.stderr)
            raise typer.Exit(2) from missing
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for path in [*Path(folder).glob("*.log"), *Path(folder).glob("*.jsonl")]:
                shutil.copy(path, keep)
    print(report.format())
    if json is not None:
        report.write_json(json)
    raise typer.Exit(0 if report.is_kept else 1)


def run(
    name: PlatformName,
    folder: Path,
    minutes: float,
    seed: int,
    gap_seconds: float,
    n_clients: int,
    drain_seconds: float,
) -> Report:
    """Create an installation, break it for some minutes, let it finish its jobs, and check it."""
    schedule = create_schedule(name, seed, 60 * minutes, gap_seconds)
    with create_platform(name, folder) as platform:
        load = Load(platform, seed, n_clients)
        load.start()
        skipped = explain_skipped(platform)
        started = time.monotonic()
        faults = inject_all([fault for fault in schedule if fault.fault.name not in skipped], platform)
        lasted = time.monotonic() - started
        drained = load.drain(drain_seconds)
        final = load.read_final_state()
        exits = platform.unexpected_exits
        history = load.history
        verdict = checker.check(history, final, read_ledger(platform.ledger), platform.suspensions, exits)
    return Report(
        platform=name,
        seed=seed,
        minutes=lasted / 60,
        n_jobs=len(history.submissions),
        faults=faults,
        skipped=skipped,
        responses=history.responses,
        drain_seconds=drained,
        verdict=verdict,
    )


def inject_all(schedule: list[ScheduledFault], platform: Platform) -> Counter[str]:
    """Inject each fault at its time, a few at once, and count those that broke something."""
    faults: Counter[str] = Counter()
    locks = {fault.fault.resource: Lock() for fault in schedule}
    started = time.monotonic()

    def inject(scheduled: ScheduledFault) -> None:
        resource = scheduled.fault.resource
        if resource is not None:
            locks[resource].acquire()
        try:
            if scheduled.inject(platform):
                faults[scheduled.fault.name] += 1
        finally:
            if resource is not None:
                locks[resource].release()

    with ThreadPoolExecutor(MAX_CONCURRENT_FAULTS) as pool:
        injections = []
        for scheduled in schedule:
            time.sleep(max(0, started + scheduled.at - time.monotonic()))
            injections.append(pool.submit(inject, scheduled))
        for injection in injections:
            injection.result()
    return faults


if __name__ == "__main__":
    typer.run(main)
