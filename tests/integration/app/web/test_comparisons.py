"""Pages of comparisons: of evaluations row by row, and of runs with their curves and configs."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from app.runs.curves.main_metric import extend_summary
from app.runs.curves.overlay import read_curve, smooth_values
from app.storage.database import read_session, transaction
from app.tables import Comparison, Evaluation, Run, RunStatus, Scope
from tests.integration.app.web import seeded_jobs, seeded_results
from tests.integration.app.web.conftest import Browser

MakeJob = Callable[..., list[Run]]


@pytest.fixture
def stored(browser: Browser, tmp_path: Path) -> Sequence[Evaluation]:
    return seeded_results.add_evaluations(tmp_path, 60)


def test_an_empty_list_says_what_to_do_first(browser: Browser) -> None:
    assert "Choose two or more evaluations of the same rows" in browser.get("/comparisons").text
    assert "No run yet." in browser.get("/compare").text


def test_chosen_evaluations_are_compared_by_a_job(browser: Browser, stored: Sequence[Evaluation]) -> None:
    data = {"csrf": browser.csrf("/evaluations"), "evaluation": [each.id for each in stored]}
    sent = browser.client.post("/comparisons", data=data, follow_redirects=False)
    assert sent.status_code == 303
    assert "A worker compares the rows." in browser.get(sent.headers["location"]).text


@pytest.mark.parametrize("ids", [[], ["evaluation_1"], ["evaluation_1", "evaluation_1"]])
def test_a_wrong_choice_is_explained(browser: Browser, ids: list[str]) -> None:
    data = {"csrf": browser.csrf("/evaluations"), "evaluation": ids}
    refused = browser.client.post("/comparisons", data=data)
    assert refused.status_code == 422 and "evaluation" in refused.text


def test_a_comparison_shows_differences_gate_and_changed_rows(
    browser: Browser, stored: Sequence[Evaluation]
) -> None:
    comparison = seeded_results.add_comparison(stored)
    shown = browser.get(f"/comparisons/{comparison.id}?filter=lost").text
    for text in ("ko-en-tuned", "ko-en-base", "it must be at least 0.7", "undecided", "Worse"):
        assert text in shown, text
    assert set(re.findall(r'class="change change-(\w+)"', shown)) == {"lost"}
    listed = browser.get(f"/comparisons?job={comparison.job_id}").text
    assert f'href="/comparisons/{comparison.id}"' in listed and "is ready" in listed


def test_a_comparison_whose_result_has_fewer_models_is_shown(
    browser: Browser, stored: Sequence[Evaluation]
) -> None:
    comparison = seeded_results.add_comparison(stored)
    with transaction() as session:
        row = session.get_one(Comparison, comparison.id)
        row.result = {**row.result, "models": row.result["models"][:1]}
    shown = browser.get(f"/comparisons/{comparison.id}")
    assert shown.status_code == 200 and stored[1].id in shown.text


def test_a_key_that_only_reads_cannot_compare(
    browser: Browser, stored: Sequence[Evaluation], make_secret: Callable[..., str]
) -> None:
    browser.post("/login", key=make_secret(Scope.read))
    assert "lacks the scope “write”" in browser.get("/evaluations").text


def test_a_thousand_comparisons_are_pages(browser: Browser, stored: Sequence[Evaluation]) -> None:
    for _ in range(52):
        seeded_results.add_comparison(stored)
    first = browser.get("/comparisons").text
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following is not None and first.count("<tr id=") == 50
    assert browser.get(following[1]).text.count("<tr id=") == 2


def test_runs_are_shown_with_curves_values_and_what_differs(browser: Browser, make_job: MakeJob) -> None:
    runs = [
        make_job(RunStatus.running, config={"learning_rate": rate, "seed": 1})[0] for rate in (1e-4, 2e-4)
    ]
    for run in runs:
        seeded_jobs.add_metrics(run, 40)
        with transaction() as session:
            summary = extend_summary(
                extend_summary({}, {"validation_loss": 2.0}, 1), {"validation_loss": 3.0, "loss": 0.5}, 40
            )
            session.get_one(Run, run.id).metrics = summary
    shown = browser.get("/compare?" + "&".join(f"run={run.id}" for run in runs)).text
    assert shown.count("<polyline") == 2
    assert "<code>learning_rate</code>" in shown and "<code>seed</code>" not in shown
    assert re.search(r"<b>2</b>.*step 1, last 3", shown)
    assert re.search(r">loss <span[^>]*>last", shown)


def test_a_curve_has_a_bounded_number_of_points_with_the_mean_of_each_part(make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.running)
    seeded_jobs.add_metrics(run, 1000)
    with read_session() as session:
        stored = session.get_one(Run, run.id)
        curve = read_curve(session, stored, "learning_rate", max_points=10)
        assert read_curve(session, stored, "nothing").steps == []
    assert 10 <= len(curve.steps) <= 11 and curve.steps[:2] == [0, 101]


def test_compared_curves_are_zoomed_and_smoothed_by_the_url(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.running)
    seeded_jobs.add_metrics(run, 400)
    plain = browser.get(f"/compare?run={run.id}&metric=loss&first=&last=&smooth=0").text
    zoomed = browser.get(f"/compare?run={run.id}&metric=loss&first=100&last=150&smooth=0.5").text
    assert plain.count("<polyline") == 1 and zoomed.count("<polyline") == 2
    assert (
        "<span>100</span><span>Step 150</span>" in zoomed
        and "first=100&amp;last=150&amp;smooth=0.5" in zoomed
    )
    with read_session() as session:
        stored = session.get_one(Run, run.id)
        curve = read_curve(session, stored, "loss", first_step=100, last_step=150)
    assert curve.steps[0] == 100 and curve.steps[-1] == 150 and len(curve.steps) == 51
    assert smooth_values([1.0, 1.0, 4.0], 0.5) == pytest.approx([1.0, 1.0, 19 / 7])
    assert browser.get(f"/compare?run={run.id}&smooth=1").status_code == 422


def test_the_choice_of_runs_is_pages_that_keep_what_is_chosen(browser: Browser) -> None:
    seeded_jobs.add_many_jobs(20)
    shown = browser.get("/compare").text
    run_id = re.search(r'name="run" value="(run_\w+)"', shown)
    assert run_id is not None
    following = re.search(r'rel="next" href="([^"]+)"', browser.get(f"/compare?run={run_id[1]}").text)
    assert following is not None and f"run={run_id[1]}" in following[1]
    assert f'value="{run_id[1]}" checked' in browser.get(following[1].replace("&amp;", "&")).text


def test_what_does_not_exist_has_an_error_page(browser: Browser) -> None:
    for path in ("/compare?run=run_none", "/comparisons/comparison_none", "/comparisons?job=job_none"):
        assert browser.get(path).status_code == 404
