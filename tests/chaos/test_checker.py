"""The checker of the chaos driver finds each broken promise in a history that contains it, and no other."""

from collections import Counter
from typing import Any

import pytest

from tests.chaos.checker import Promise, check
from tests.chaos.faults.schedule import create_schedule
from tests.chaos.history import FinalState, History, Submission
from tests.chaos.ledger import Entry, Kind
from tests.chaos.platforms import PlatformName, Suspension
from tests.chaos.process import UnexpectedExit


def entry(attempt: int, kind: Kind, step: int, at: float, **values: Any) -> Entry:
    return Entry("run_1", attempt, 100 + attempt, kind, step, at, at, **values)


class World:
    """A run that was interrupted once, resumed from its checkpoint and succeeded."""

    def __init__(self) -> None:
        self.history = History([Submission("job-1", job_ids={"job_1"})])
        self.run: dict[str, Any] = {"id": "run_1", "status": "succeeded", "result": {"attempt": 2}}
        self.run |= {"waiting_for": None, "error": None}
        self.jobs = [{"id": "job_1", "name": "job-1", "status": "succeeded", "runs": [self.run]}]
        facts = [
            (0, "status", {"status": "queued"}, None),
            (1, "status", {"status": "running"}, None),
            (1, "checkpoint", {}, 10),
            (1, "status", {"status": "queued"}, None),
            (2, "status", {"status": "running"}, None),
            (2, "status", {"status": "succeeded"}, None),
        ]
        self.events = [
            {"seq": i, "attempt": attempt, "type": kind, "data": data, "step": step}
            for i, (attempt, kind, data, step) in enumerate(facts, 1)
        ]
        self.ledger = [
            entry(1, Kind.begin, 0, 1.0),
            entry(1, Kind.checkpoint, 10, 2.0),
            entry(2, Kind.begin, 0, 9.0),
            entry(2, Kind.resumed, 10, 9.1),
            entry(2, Kind.step, 11, 9.2),
            entry(2, Kind.end, 20, 10.0),
        ]
        self.models = Counter({"run_1": 1})
        self.suspensions: list[Suspension] = []
        self.exits: list[UnexpectedExit] = []
        self.absent: list[str] = []

    def find_broken(self) -> set[Promise]:
        final = FinalState(self.jobs, {"run_1": self.events}, self.models, self.absent)
        verdict = check(self.history, final, self.ledger, self.suspensions, self.exits)
        return {violation.promise for violation in verdict.violations}


@pytest.fixture
def world() -> World:
    return World()


def test_a_run_that_resumed_after_an_interruption_breaks_nothing(world: World) -> None:
    final = FinalState(world.jobs, {"run_1": world.events}, world.models)
    verdict = check(world.history, final, world.ledger, [], [])
    assert (verdict.violations, verdict.overlaps, verdict.recovery_seconds) == ([], [], [7.0])


def lose_job(world: World) -> None:
    world.history.submissions.append(Submission("job-2", job_ids={"job_2"}))


def acknowledge_two_jobs(world: World) -> None:
    world.history.submissions[0].job_ids.add("job_2")


def create_job_twice(world: World) -> None:
    world.jobs.append({**world.jobs[0], "id": "job_2", "runs": []})


def publish_two_models(world: World) -> None:
    world.models["run_1"] = 2


def keep_result_of_other_attempt(world: World) -> None:
    world.run["result"] = {"attempt": 1}


def leave_job_running(world: World) -> None:
    world.jobs[0]["status"] = world.run["status"] = "running"
    del world.events[-1]


def fail_job(world: World) -> None:
    world.jobs[0]["status"] = world.run["status"] = "failed"
    world.events[-1]["data"] = {"status": "failed"}


def change_final_status(world: World) -> None:
    world.events.append({**world.events[-1], "seq": 7, "data": {"status": "failed"}})


def skip_event(world: World) -> None:
    world.events[-1]["seq"] = 8


def resume_torn_checkpoint(world: World) -> None:
    world.ledger[3] = entry(2, Kind.resumed, 10, 9.1, intact=False)


def start_over(world: World) -> None:
    del world.ledger[3]


def work_after_next_attempt_began(world: World) -> None:
    world.ledger.append(entry(1, Kind.step, 11, 9.5))


def respond_with_internal_error(world: World) -> None:
    world.history.add_response("500", "GET /jobs")


def exit_by_itself(world: World) -> None:
    world.exits.append(UnexpectedExit("worker-1", 1, 5.0, "Traceback"))


def stay_away(world: World) -> None:
    world.absent.append("1 of 3 workers")


BREAKS = {
    lose_job: Promise.lost,
    acknowledge_two_jobs: Promise.accepted_twice,
    create_job_twice: Promise.accepted_twice,
    publish_two_models: Promise.accepted_twice,
    keep_result_of_other_attempt: Promise.accepted_twice,
    leave_job_running: Promise.stuck,
    fail_job: Promise.failed,
    change_final_status: Promise.final_status_changed,
    skip_event: Promise.events_not_numbered,
    resume_torn_checkpoint: Promise.torn_checkpoint,
    start_over: Promise.progress_lost,
    work_after_next_attempt_began: Promise.overlap,
    respond_with_internal_error: Promise.internal_error,
    exit_by_itself: Promise.needs_person,
    stay_away: Promise.needs_person,
}


@pytest.mark.parametrize("break_promise", BREAKS)
def test_a_broken_promise_is_found(world: World, break_promise: Any) -> None:
    break_promise(world)
    assert world.find_broken() == {BREAKS[break_promise]}


def test_an_overlap_after_a_suspension_is_reported_but_breaks_no_promise(world: World) -> None:
    work_after_next_attempt_began(world)
    world.suspensions.append(Suspension(frozenset({101}), 2.0, 9.4))
    assert world.find_broken() == set()


@pytest.mark.parametrize(("ended", "broken"), [(8.5, set()), (2.5, {Promise.overlap})])
def test_an_overlap_after_the_host_itself_stood_still_breaks_no_promise(
    world: World, ended: float, broken: set[Promise]
) -> None:
    work_after_next_attempt_began(world)
    world.suspensions.append(Suspension(frozenset(), 2.0, ended, is_of_host=True))
    assert world.find_broken() == broken


@pytest.mark.parametrize("platform", PlatformName)
def test_the_schedule_depends_on_the_seed_alone(platform: PlatformName) -> None:
    first, again, other = (
        [(fault.fault.name, fault.at) for fault in create_schedule(platform, seed, 600, 3)]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert all(platform in fault.fault.platforms for fault in create_schedule(platform, 1, 600, 3))
