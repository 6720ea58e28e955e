"""The page of a run: its error, its best values, its points and its log, which its stream continues."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.runs import lifecycle
from app.runs.curves import points
from app.runs.curves.main_metric import extend_summary
from app.runs.curves.points import list_last_lines, list_points
from app.storage.database import read_session, transaction
from app.tables import Run, RunStatus
from app.web.live import LiveView
from app.web.views.runs import page
from app.web.views.runs.stream import RunPoll
from tests.integration.app.web import seeded_jobs, seeded_results
from tests.integration.app.web.conftest import Browser
from tests.integration.app.web.test_job_list import request_of
from trainers.configs import StageKind

MakeJob = Callable[..., list[Run]]


def poll_of(browser: Browser, run_id: str, after: int, version: str = "") -> RunPoll:
    view = LiveView(partial(page._load, run_id=run_id), page._render)
    return RunPoll(request_of(browser), view, version, run_id, after)


def named(events: Any, name: str) -> list[str]:
    """Return the data of the events with a name."""
    texts = [event.decode() for event in events]
    return ["\n".join(re.findall("^data: (.*)$", text, re.M)) for text in texts if f"event: {name}\n" in text]


def test_an_error_is_shown_with_its_cause_and_its_fix(browser: Browser) -> None:
    run = seeded_jobs.add_shown_jobs()["support-chat-v3"][0]
    shown = browser.get(f"/runs/{run.id}").text
    assert shown.index("ran out of memory at step 42") < shown.index("Set micro_batch_size to 8")
    assert shown.index("Set micro_batch_size") < shown.index('id="curves-title"')
    assert 'class="action-retry"' in shown


def test_an_error_has_a_title_and_advice_in_the_language_of_the_page(browser: Browser) -> None:
    run = seeded_jobs.add_shown_jobs()["support-chat-v3"][0]
    shown = browser.get(f"/runs/{run.id}", **{"Accept-Language": "ko"}).text
    title, advice = shown.index("장치의 메모리가 부족합니다"), shown.index("배치 크기나 최대 길이를 줄이거나")
    assert title < advice < shown.index("ran out of memory at step 42")
    assert (
        "장치의 메모리가 부족합니다" in browser.get(f"/jobs/{run.job_id}", **{"Accept-Language": "ko"}).text
    )


def test_a_run_that_has_logged_nothing_says_so(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.queued)
    shown = browser.get(f"/runs/{run.id}").text
    assert "No metrics yet" in shown and "No log lines yet" in shown
    assert "No live worker serves queue cpu" in shown
    assert browser.get(f"/runs/{run.id}/points").json() == {"names": [], "rows": [], "next": None}


def test_best_and_last_values_come_with_their_steps(browser: Browser) -> None:
    run = seeded_jobs.add_shown_jobs()["ko-en-news"][0]
    shown = browser.get(f"/runs/{run.id}").text
    assert re.search(r"0\.7994\s*<span[^>]*>step 150", shown)
    assert re.search(r"0\.8412\s*<span[^>]*>step 180", shown)


def test_a_finished_run_leads_to_what_it_has_produced(browser: Browser, make_job: MakeJob) -> None:
    train, deploy = make_job(RunStatus.succeeded, RunStatus.succeeded)
    with transaction() as session:
        stored = session.get(Run, deploy.id)
        assert stored is not None
        stored.result = {"stage": "deploy", "deployment_id": "deployment_1", "deployment": "mine"}
    for shown in (browser.get(f"/jobs/{deploy.job_id}").text, browser.get(f"/runs/{deploy.id}").text):
        assert 'href="/deployments/deployment_1">mine</a>' in shown
        assert 'href="/chat?a=mine"' in shown
    assert f'href="/runs/{train.id}"' in browser.get(f"/runs/{deploy.id}").text


def test_runs_that_have_produced_nothing_yet_are_shown(browser: Browser, make_job: MakeJob) -> None:
    kinds = (StageKind.prepare, StageKind.evaluate, StageKind.compare, StageKind.gate, StageKind.deploy)
    runs = make_job(*[RunStatus.queued] * len(kinds))
    with transaction() as session:
        for run, kind in zip(runs, kinds, strict=True):
            session.get_one(Run, run.id).stage = kind
    for address in (f"/jobs/{runs[0].job_id}", *(f"/runs/{run.id}" for run in runs)):
        assert browser.get(address).status_code == 200


def test_an_evaluation_run_leads_to_its_rows_with_the_verdict(browser: Browser, tmp_path: Path) -> None:
    model, _ = seeded_results.add_evaluations(tmp_path, 20)
    for shown in (browser.get(f"/jobs/{model.job_id}").text, browser.get(f"/runs/{model.run_id}").text):
        assert f'href="/evaluations/{model.id}"' in shown
        assert 'class="verdict verdict-better"' in shown


def test_ten_thousand_points_arrive_in_parts(browser: Browser) -> None:
    run = seeded_jobs.add_shown_jobs()["ko-en-news"][0]
    seeded_jobs.add_metrics(run, 10_000)
    after, steps = 0, []
    while after is not None:
        part = browser.get(f"/runs/{run.id}/points?after={after}").json()
        steps += [row[1] for row in part["rows"]]
        after = part["next"]
    assert len(steps) == 10_020 and sorted(steps) == steps


def test_a_stream_continues_where_the_page_ends(browser: Browser) -> None:
    run = seeded_jobs.add_shown_jobs()["ko-en-news"][0]
    seeded_jobs.add_metrics(run, 40)
    shown = browser.get(f"/runs/{run.id}").text
    after = int(re.findall('data-after="([0-9]+)"', shown)[0])
    version = re.findall('data-version="([0-9a-f]+)"', shown)[0]
    assert "step 38 of 40" in shown
    poll = poll_of(browser, run.id, after, version)
    assert poll.read() == ()
    seeded_jobs.add_metrics(run, 2, from_step=40)
    events = poll.read()
    (added,) = named(events, "points")
    assert {row[1] for row in json.loads(added)["rows"]} == {40, 41}
    assert json.loads(named(events, "log")[0])[0].startswith("step 40 of 2")
    assert any(event.startswith(f"id: {run.event_seq}\n".encode()) for event in events)
    assert 'hx-target="#run-progress"' in named(events, "parts")[0]


def test_a_reconnected_stream_neither_misses_nor_repeats_an_event(browser: Browser) -> None:
    run = seeded_jobs.add_shown_jobs()["ko-en-news"][0]
    seeded_jobs.add_metrics(run, 700)
    first = poll_of(browser, run.id, 1)
    seen = json.loads(named(first.read(), "points")[0])["rows"]
    second = poll_of(browser, run.id, first._seq)
    seen += json.loads(named(second.read(), "points")[0])["rows"]
    with read_session() as session:
        expected = [point.seq for point in list_points(session, run.id, 1, 5000)[0]]
    assert [row[0] for row in seen] == expected


def test_a_run_that_ended_meanwhile_is_shown_as_it_is(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.running)
    poll = poll_of(browser, run.id, 0)
    poll.read()
    with transaction() as session:
        error = {"code": "program_killed", "message": "It failed.", "hint": "Fix it."}
        lifecycle.move(session, run.id, RunStatus.failed, values={"error": error})
    (parts,) = named(poll.read(), "parts")
    assert "Failed" in parts and "Fix it." in parts


def test_a_log_without_lines_among_the_newest_events_is_not_searched_to_its_begin(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = seeded_jobs.add_shown_jobs()["ko-en-news"][0]
    seeded_jobs.add_metrics(run, 60)
    monkeypatch.setattr(points, "MAX_SEARCHED_EVENTS", 10)
    with read_session() as session:
        lines, last = list_last_lines(session, run.id, 500)
    assert 1 <= len(lines) <= 3 and last == run.event_seq


def test_a_summary_keeps_the_first_extremes_and_the_last_value() -> None:
    summary: dict[str, Any] = {}
    for step, loss in enumerate([2.0, 1.0, None, float("inf"), 1.0, 1.5], 1):
        summary = extend_summary(summary, {"loss": loss}, step)
    assert summary["loss"] == {
        "lowest": 1.0,
        "lowest_step": 2,
        "highest": 2.0,
        "highest_step": 1,
        "last": 1.5,
        "last_step": 6,
    }
    many = {f"metric{number}": 1.0 for number in range(200)}
    assert len(extend_summary({}, many, 1)) == 100


def test_an_unknown_run_has_an_error_page(browser: Browser) -> None:
    for path in ("/runs/run_none", "/runs/run_none/files/log.txt"):
        assert (browser.get(path).status_code, "There is no run" in browser.get(path).text) == (404, True)
