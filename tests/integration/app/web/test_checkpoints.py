"""The checkpoints of a run: their values, and what can be done with each of them."""

import re
from collections.abc import Callable

import pytest

from app.tables import Dataset, Run, RunStatus, Scope
from tests.integration.app.web import seeded_results
from tests.integration.app.web.conftest import Browser

MakeJob = Callable[..., list[Run]]


def path_of(run: Run, query: str = "") -> str:
    return f"/runs/{run.id}/checkpoints{query}"


def shown_steps(text: str) -> list[str]:
    return re.findall(r'<th scope="row"[^>]*><a[^>]*>Step ([^<]*)</a>', text)


def reasons_of(text: str, step: int) -> dict[str, str]:
    """Return the reason of each use that a step does not have."""
    found = re.findall(rf'aria-label="(\w+) step {step}" title="([^"]*)" data-disabled', text)
    return dict(found)


@pytest.mark.parametrize(
    ("status", "text"),
    [(RunStatus.running, "No checkpoint yet."), (RunStatus.succeeded, "has no checkpoints")],
)
def test_a_run_without_checkpoints_says_when_there_are_some(
    browser: Browser, make_job: MakeJob, status: RunStatus, text: str
) -> None:
    (run,) = make_job(status)
    assert text in browser.get(path_of(run)).text


def test_the_best_checkpoint_is_marked(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.running)
    seeded_results.add_checkpoints(run, 10)
    shown = browser.get(path_of(run)).text
    assert shown_steps(shown)[:2] == ["500", "450"]
    best = re.search(r">Step (\d+)</a> <span[^>]*>Best", shown)
    assert best is not None and best[1] == "350"
    assert "0.8" in shown and "validation loss" in shown


def test_the_best_checkpoint_of_another_page_is_named_with_its_place(
    browser: Browser, make_job: MakeJob
) -> None:
    (run,) = make_job(RunStatus.running)
    seeded_results.add_checkpoints(run, 100)
    shown = browser.get(path_of(run)).text
    assert "The best checkpoint is on another page" in shown
    link = re.search(r'href="(\?[^"]*step=3500)#selected"', shown)
    assert link is not None
    found = browser.get(path_of(run) + link[1].replace("&amp;", "&")).text
    assert shown_steps(found)[0] == "3,500" and "on another page" not in found
    assert 'class="selected"' in found and ">Best</span>" in found


def test_a_paused_run_resumes_from_its_last_checkpoint_only(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.paused)
    seeded_results.add_checkpoints(run, 2)
    shown = browser.get(path_of(run)).text
    assert "Resume" not in reasons_of(shown, 100)
    assert reasons_of(shown, 50)["Resume"] == "A run resumes from its last checkpoint only."
    assert browser.post(f"/jobs/{run.job_id}/resume", page=path_of(run)).status_code == 303
    assert reasons_of(browser.get(path_of(run)).text, 100)["Resume"].startswith("Possible only when")


def test_only_the_model_of_the_last_step_can_be_deployed(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.succeeded)
    seeded_results.add_checkpoints(run, 2, resumable=False)
    model_id = seeded_results.add_model(run)
    reasons = reasons_of(browser.get(path_of(run)).text, 50)
    assert "registers its model" in reasons["Deploy"] and "only the weights" in reasons["Resume"]
    fields = {"model": model_id, "name": "tuned", "step": "100"}
    sent = browser.post(path_of(run, "/deploy"), page=path_of(run), **fields)
    assert (sent.status_code, sent.headers["location"]) == (303, path_of(run, "?step=100"))
    assert "“tuned” is starting" in browser.get(path_of(run)).text


def test_a_deployment_with_an_unusable_name_is_refused(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.succeeded)
    fields = {"model": "model_1", "name": "No Name", "step": "100"}
    refused = browser.post(path_of(run, "/deploy"), page=path_of(run), **fields)
    assert refused.status_code == 422 and "name" in refused.text


def test_a_selected_checkpoint_shows_a_spec_that_evaluates_it(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.running)
    seeded_results.add_checkpoints(run, 2)
    shown = browser.get(path_of(run, "?step=50")).text
    assert "&#34;step&#34;: 50" in shown and 'class="selected"' in shown


def test_a_selected_checkpoint_is_evaluated_on_a_dataset(
    browser: Browser, make_job: MakeJob, make_dataset: Callable[..., Dataset]
) -> None:
    (run,) = make_job(RunStatus.succeeded, config={"stage": "sft", "base": "org/base", "dataset": "d"})
    seeded_results.add_checkpoints(run, 2)
    dataset = make_dataset("held-out")
    assert f'<option value="{dataset.id}">held-out' in browser.get(path_of(run, "?step=50")).text
    fields = {"step": "50", "dataset": dataset.id, "metric": "chrf"}
    sent = browser.post(path_of(run, "/evaluate"), page=path_of(run), **fields)
    assert sent.status_code == 303, sent.text
    assert "evaluate-step-50" in browser.get(sent.headers["location"]).text


def test_a_key_that_only_reads_gets_the_reason(
    browser: Browser, make_job: MakeJob, make_secret: Callable[..., str]
) -> None:
    (run,) = make_job(RunStatus.paused)
    seeded_results.add_checkpoints(run, 1)
    browser.post("/login", key=make_secret(Scope.read))
    assert "lacks the scope “write”" in reasons_of(browser.get(path_of(run)).text, 50)["Resume"]


def test_a_thousand_checkpoints_are_pages(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.running)
    seeded_results.add_checkpoints(run, 1000, every=1)
    first = browser.get(path_of(run)).text
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following is not None
    second = browser.get(path_of(run) + following[1]).text
    assert shown_steps(first)[-1] == "976" and shown_steps(second)[0] == "975"


def test_the_api_returns_the_values_of_each_checkpoint(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.running)
    seeded_results.add_checkpoints(run, 1)
    (view,) = browser.client.get(f"/api/v1/runs/{run.id}/checkpoints").json()["items"]
    assert set(view["metrics"]) == {"loss", "validation_loss"} and view["model_id"] is None


def test_a_run_that_does_not_exist_has_an_error_page(browser: Browser) -> None:
    assert browser.get("/runs/run_none/checkpoints").status_code == 404
