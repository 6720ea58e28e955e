"""The checker: compares the clients' history, the ledger and the final state with the service's promises."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

from tests.chaos.history import FinalState, History, Request, Submission
from tests.chaos.ledger import Entry, Kind
from tests.chaos.platforms import LEASE_SECONDS, Suspension
from tests.chaos.process import UnexpectedExit

FINISHED = {"succeeded", "failed", "cancelled", "skipped"}


class Promise(StrEnum):
    """A promise of the service, named by what happens when it is broken."""

    lost = "job lost"
    stuck = "job stuck"
    failed = "job failed"
    accepted_twice = "accepted twice"
    final_status_changed = "final status changed"
    events_not_numbered = "events not numbered without gaps"
    torn_checkpoint = "torn checkpoint resumed"
    progress_lost = "checkpoint not used"
    overlap = "two attempts at once"
    internal_error = "internal error"
    needs_person = "needs a person"


@dataclass(frozen=True)
class Violation:
    """One broken promise."""

    promise: Promise
    subject: str
    detail: str = ""


@dataclass(frozen=True)
class Overlap:
    """Two attempts of one run that worked at the same time."""

    run_id: str
    attempt: int
    seconds: float
    is_suspended: bool
    """The earlier attempt or its guard was suspended: nothing could stop it before it continued."""


@dataclass
class Verdict:
    """What the checker has found."""

    violations: list[Violation] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    recovery_seconds: list[float] = field(default_factory=list)
    """From the last sign of an attempt that was interrupted to the first sign of the next one."""


def check(
    history: History,
    final: FinalState,
    ledger: Sequence[Entry],
    suspensions: Sequence[Suspension],
    exits: Sequence[UnexpectedExit],
) -> Verdict:
    """Check all promises."""
    jobs = {job["id"]: job for job in final.jobs}
    verdict = Verdict()
    for submission in history.submissions:
        verdict.violations += _check_submission(submission, jobs)
    verdict.violations += _check_names(final.jobs)
    for job in final.jobs:
        for run in job["runs"]:
            verdict.violations += _check_run(run, final.events[run["id"]], final.models[run["id"]])
    attempts = group_attempts(ledger)
    for run_id, of_run in attempts.items():
        verdict.overlaps += find_overlaps(run_id, of_run, suspensions)
        verdict.violations += _check_resumptions(run_id, of_run, final.events.get(run_id, []))
    verdict.violations += [
        Violation(Promise.overlap, overlap.run_id, f"attempt {overlap.attempt}: {overlap.seconds:.2f} s")
        for overlap in verdict.overlaps
        if not overlap.is_suspended
    ]
    paused = {
        run["id"]
        for job in final.jobs
        for run in job["runs"]
        if any(event["data"].get("status") == "paused" for event in final.events[run["id"]])
    }
    verdict.recovery_seconds = [
        seconds for run_id, of_run in attempts.items() if run_id not in paused for seconds in _gaps(of_run)
    ]
    verdict.violations += [
        Violation(Promise.internal_error, "status 500", request) for request in history.internal_errors
    ]
    verdict.violations += [
        Violation(Promise.needs_person, end.name, f"exit status {end.status}: {end.log_tail}")
        for end in exits
    ]
    verdict.violations += [
        Violation(Promise.needs_person, name, "absent after all faults have ended") for name in final.absent
    ]
    return verdict


def group_attempts(ledger: Sequence[Entry]) -> dict[str, list[list[Entry]]]:
    """Return the entries of each attempt, in order, by run."""
    attempts: dict[str, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in ledger:
        attempts[entry.run_id][entry.attempt].append(entry)
    return {run_id: [of_run[number] for number in sorted(of_run)] for run_id, of_run in attempts.items()}


def find_overlaps(
    run_id: str, attempts: Sequence[Sequence[Entry]], suspensions: Sequence[Suspension]
) -> Iterator[Overlap]:
    """Find the attempts that gave a sign of life after the next one had begun."""
    for earlier, later in pairwise(attempts):
        seconds = earlier[-1].monotonic - later[0].monotonic
        if seconds > 0:
            is_suspended = any(
                _can_delay(suspension, earlier[0].pid, later[0].monotonic)
                and suspension.started < earlier[-1].monotonic
                for suspension in suspensions
            )
            yield Overlap(run_id, earlier[0].attempt, seconds, is_suspended)


def _can_delay(suspension: Suspension, pid: int, claimed: float) -> bool:
    """Return whether a guard could not stop this program before another attempt began at that time."""
    if suspension.is_of_host:
        return suspension.ended > claimed - LEASE_SECONDS
    return pid in suspension.pids


def _check_submission(submission: Submission, jobs: dict[str, dict[str, Any]]) -> Iterator[Violation]:
    if len(submission.job_ids) > 1:
        ids = ", ".join(sorted(submission.job_ids))
        yield Violation(Promise.accepted_twice, submission.key, f"acknowledged as {ids}")
    if submission.job_id is None:
        yield Violation(Promise.stuck, submission.key, "never acknowledged")
        return
    job = jobs.get(submission.job_id)
    if job is None:
        yield Violation(Promise.lost, submission.key, f"{submission.job_id} is not listed")
        return
    if job["status"] not in FINISHED:
        yield Violation(Promise.stuck, submission.job_id, f"{job['status']}: {_describe(job)}")
    if job["status"] == "failed" or (
        job["status"] == "cancelled" and submission.request is not Request.cancel
    ):
        yield Violation(Promise.failed, submission.job_id, f"{job['status']}: {_describe(job)}")


def _check_names(jobs: Sequence[dict[str, Any]]) -> Iterator[Violation]:
    """Check that no key has created two jobs, whatever the clients were told."""
    for name, count in Counter(job["name"] for job in jobs).items():
        if count > 1:
            yield Violation(Promise.accepted_twice, name, f"{count} jobs")


def _check_run(run: dict[str, Any], events: Sequence[dict[str, Any]], n_models: int) -> Iterator[Violation]:
    numbers = [event["seq"] for event in events]
    if numbers != list(range(1, len(events) + 1)):
        yield Violation(Promise.events_not_numbered, run["id"], str(numbers[-20:]))
    statuses = [event for event in events if event["type"] == "status"]
    ends = [event for event in statuses if event["data"]["status"] in FINISHED]
    if ends and (ends[0] is not statuses[-1] or run["status"] != ends[0]["data"]["status"]):
        changes = [event["data"]["status"] for event in statuses] + [run["status"]]
        yield Violation(Promise.final_status_changed, run["id"], " → ".join(changes))
    if run["status"] == "succeeded":
        if n_models != 1:
            yield Violation(Promise.accepted_twice, run["id"], f"{n_models} models")
        if run["result"]["attempt"] != ends[-1]["attempt"]:
            yield Violation(Promise.accepted_twice, run["id"], "the result is that of another attempt")


def _check_resumptions(
    run_id: str, attempts: Sequence[Sequence[Entry]], events: Sequence[dict[str, Any]]
) -> Iterator[Violation]:
    """Check that each attempt resumed from the last checkpoint saved before it, and that it is intact."""
    for entries in attempts:
        begin = entries[0]
        resumed = next((entry for entry in entries if entry.kind is Kind.resumed), None)
        if resumed is not None and not resumed.intact:
            yield Violation(Promise.torn_checkpoint, run_id, f"attempt {begin.attempt}, step {resumed.step}")
        saved = [
            event for event in events if event["type"] == "checkpoint" and event["attempt"] < begin.attempt
        ]
        last = max((event["step"] for event in saved), default=0)
        is_started = len(entries) > 1
        if is_started and (resumed.step if resumed else 0) < last:
            detail = f"attempt {begin.attempt} began after step {resumed.step if resumed else 0}, not {last}"
            yield Violation(Promise.progress_lost, run_id, detail)


def _gaps(attempts: Sequence[Sequence[Entry]]) -> list[float]:
    return [max(0.0, later[0].monotonic - earlier[-1].monotonic) for earlier, later in pairwise(attempts)]


def _describe(job: dict[str, Any]) -> str:
    runs = [run for run in job["runs"] if run["status"] != "succeeded"]
    return "; ".join(f"{run['id']} {run['status']} {run['waiting_for'] or run['error']}" for run in runs)
