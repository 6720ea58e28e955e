"""The samples of a run in training: newest first, in pages, and live."""

import re
from collections.abc import Callable

import pytest

from app.tables import Run, RunStatus
from app.web import live
from app.web.views.runs import samples
from tests.integration.app.web import seeded_results
from tests.integration.app.web.conftest import Browser
from tests.integration.app.web.test_job_list import request_of
from trainers.configs import StageKind

MakeJob = Callable[..., list[Run]]


def shown_steps(text: str) -> list[int]:
    return [int(step.replace(",", "")) for step in re.findall(r"<h2[^>]*>Step ([\d,]+) ", text)]


@pytest.mark.parametrize(
    ("status", "stage", "text"),
    [
        (RunStatus.running, StageKind.grpo, "The first ones come with the first metrics"),
        (RunStatus.running, StageKind.sft, "Only the stages grpo and distill"),
    ],
)
def test_a_run_without_samples_says_when_there_are_some(
    browser: Browser, make_job: MakeJob, status: RunStatus, stage: StageKind, text: str
) -> None:
    (run,) = make_job(status, stage=stage)
    assert text in browser.get(f"/runs/{run.id}/samples").text


def test_samples_are_pages_from_the_newest_step_with_their_rewards(
    browser: Browser, make_job: MakeJob
) -> None:
    (run,) = make_job(RunStatus.running, stage=StageKind.grpo)
    seeded_results.add_samples(run, 1000)
    first = browser.get(f"/runs/{run.id}/samples").text
    assert shown_steps(first) == list(range(9990, 9890, -10))
    assert "Reward <b>1.200</b>" in first and "#### 36" in first
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following is not None
    assert shown_steps(browser.get(f"/runs/{run.id}/samples{following[1]}").text)[0] == 9890


def test_the_page_gets_samples_while_the_run_trains(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.running, stage=StageKind.grpo)
    shown = re.search('data-version="([0-9a-f]+)"', browser.get(f"/runs/{run.id}/samples").text)
    assert shown is not None
    poll = live.Poll(request_of(browser), samples._sample_view(run.id, None), shown[1])
    assert poll.read() == ()
    seeded_results.add_samples(run, 1)
    (event,) = poll.read()
    assert b'hx-target="#samples"' in event and b"#### 36" in event


def test_a_run_that_does_not_exist_has_an_error_page(browser: Browser) -> None:
    assert browser.get("/runs/run_none/samples").status_code == 404
