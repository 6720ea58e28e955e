"""The list of jobs: filters and columns in the URL, pages by cursor, and live rows."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from sqlalchemy.exc import OperationalError
from starlette.requests import Request

from app.http.errors import NotFound, Unauthorized
from app.http.paging import PageQuery
from app.jobs import actions
from app.jobs.listing import list_jobs
from app.storage.database import read_session, transaction
from app.tables import Run, RunStatus
from app.web import live
from app.web.live import Parts, poll_until_stopped
from app.web.views import jobs
from tests.integration.app.web import seeded_jobs
from tests.integration.app.web.conftest import Browser

MakeJob = Callable[..., list[Run]]


def shown_names(text: str) -> list[str]:
    return re.findall(r'<th scope="row"[^>]*><a[^>]*>([^<]*)</a>', text)


def test_an_empty_list_says_what_to_do_first(browser: Browser) -> None:
    assert "Upload a dataset, then submit a job" in browser.get("/jobs").text
    assert "No job matches these filters." in browser.get("/jobs?status=failed").text


def test_a_row_shows_the_best_value_and_the_state_of_each_stage(browser: Browser) -> None:
    seeded_jobs.add_shown_jobs()
    shown = browser.get("/jobs").text
    assert shown_names(shown) == [name for name, _ in seeded_jobs.SHOWN]
    assert "<b>0.7994</b>" in shown and "<b>61.42</b>" in shown
    assert 'class="stage stage-failed"' in shown


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("status=paused", ["support-chat-v2"]),
        ("search=SUPPORT&status=", ["support-chat-v3", "support-chat-v2"]),
        ("search=%25", []),
        ("label=team:translation", ["ko-en-news", "ko-en-news-lr-sweep"]),
    ],
)
def test_filters_are_in_the_url(browser: Browser, query: str, names: list[str]) -> None:
    seeded_jobs.add_shown_jobs()
    assert shown_names(browser.get(f"/jobs?{query}").text) == names


def test_jobs_are_sorted_by_their_duration_and_by_their_score(browser: Browser) -> None:
    seeded_jobs.add_shown_jobs()
    with read_session() as session:
        jobs = {job.name: job for job in list_jobs(session, PageQuery(), None, None, [])[0]}
    longest = [jobs[name] for name in shown_names(browser.get("/jobs?sort=longest").text)]
    lengths = [job.finished_at - job.started_at for job in longest if job.started_at and job.finished_at]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) > 1
    best = [jobs[name].metric for name in shown_names(browser.get("/jobs?sort=best").text)]
    losses = [metric.value for metric in best if metric and metric.name == "validation_loss"]
    assert losses == sorted(losses) and len(losses) > 1 and best[-1] is None


@pytest.mark.parametrize(("metric", "is_higher_better"), [("ter", False), ("chrf", True)])
def test_the_best_score_comes_first_whatever_its_direction(
    browser: Browser, make_job: MakeJob, metric: str, is_higher_better: bool
) -> None:
    for value in (40.0, 20.0, 30.0):
        score = {"metric": metric, "value": value, "higher_is_better": is_higher_better}
        make_job(RunStatus.succeeded, name=f"job-{value:.0f}", result={"models": [{"scores": [score]}]})
    ascending = ["job-20", "job-30", "job-40"]
    names = shown_names(browser.get("/jobs?sort=best").text)
    assert names == (ascending[::-1] if is_higher_better else ascending)


def test_chosen_columns_are_in_the_url_and_remembered(browser: Browser, make_job: MakeJob) -> None:
    make_job(RunStatus.queued)
    chosen = browser.get("/jobs?column=queue&column=labels").text
    assert "column-queue" in chosen and "column-started" not in chosen
    assert browser.get("/jobs").text.count("column-started") == 0
    assert "column-started" in browser.get("/jobs?column=started").text


def test_a_thousand_jobs_are_pages(browser: Browser) -> None:
    seeded_jobs.add_many_jobs(1000)
    path, names = "/jobs", []
    for _ in range(3):
        shown = browser.get(path).text
        names += shown_names(shown)
        found = re.search(r'rel="next" href="([^"]+)"', shown)
        assert found is not None
        path = found[1].replace("&amp;", "&")
    assert names == [f"nightly-{n:04d}" for n in range(999, 849, -1)]


def request_of(browser: Browser) -> Request:
    """Return a request of the browser as a stream of it has it."""
    cookies = "; ".join(f"{name}={value}" for name, value in browser.client.cookies.items())
    headers = [(b"host", b"127.0.0.1"), (b"cookie", cookies.encode())]
    scope = {"type": "http", "method": "GET", "path": "/jobs/stream", "headers": headers, "scheme": "http"}
    return Request({**scope, "client": ("127.0.0.1", 5), "query_string": b"", "state": {}})


def test_a_stream_sends_the_rows_that_change(browser: Browser, make_job: MakeJob) -> None:
    run, other = make_job(RunStatus.queued)[0], make_job(RunStatus.queued)[0]
    filters = jobs.JobFilters(None, [], "", None, jobs.DEFAULT_COLUMNS)
    shown = re.search('data-version="([0-9a-f]+)"', browser.get("/jobs").text)
    assert shown is not None
    poll = live.Poll(request_of(browser), jobs._list_view(filters), shown[1])
    assert poll.read() == ()
    with transaction() as session:
        actions.pause(session, run.job_id)
    (event,) = poll.read()
    assert event.startswith(b"event: parts\n") and f'hx-target="#row-{run.job_id}"'.encode() in event
    assert other.job_id.encode() not in event and poll.read() == ()


def test_a_new_row_brings_the_whole_table() -> None:
    before, after = Parts(rows={"a": "A"}, table="jobs"), Parts(rows={"b": "B", "a": "A"}, table="jobs")
    assert (
        after.render_changes(before) == '<hx-partial hx-target="#jobs" hx-swap="innerMorph">BA</hx-partial>'
    )
    assert before.render_changes(before) == ""


async def _collect(stream: AsyncIterator[Sequence[bytes]]) -> list[bytes]:
    return [event async for events in stream for event in events]


def test_a_stream_reports_a_database_that_is_away_and_back() -> None:
    errors: list[Exception | None] = [OperationalError("", {}, Exception()), None, NotFound("x")]

    def read() -> list[bytes]:
        if (error := errors.pop(0)) is not None:
            raise error
        return [live.make_event("x")]

    events = asyncio.run(_collect(poll_until_stopped(read, threading.Event(), seconds=0)))
    assert [event.split(b"\n")[0] for event in events] == [
        b"event: away",
        b"event: back",
        b"event: x",
        b"event: gone",
    ]


def test_a_stream_ends_with_its_login() -> None:
    def read() -> list[bytes]:
        raise Unauthorized("the key was revoked")

    events = asyncio.run(_collect(poll_until_stopped(read, threading.Event(), seconds=0)))
    assert events == [live.make_event("logged-out")]
