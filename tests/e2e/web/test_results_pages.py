"""The pages of results in a real browser: accessibility, widths, themes and languages."""

from playwright.sync_api import expect

from app.evaluations.service import EvaluationFilters, get_evaluation, list_evaluations
from app.http.paging import PageQuery
from app.storage.database import read_session
from tests.e2e.web.conftest import Pages, find_violations
from tests.integration.app.web import seeded_results


def test_the_checkpoints_of_a_run_are_accessible_at_every_width(pages: Pages) -> None:
    pages.look(f"/runs/{pages.runs['ko-en-news'][0].id}/checkpoints?step=10000", "checkpoints")


def find_evaluation() -> str:
    """Return the id of the evaluation that has a baseline, the oldest one of its model."""
    with read_session() as session:
        found, _ = list_evaluations(session, PageQuery(), EvaluationFilters(model="ko-en-tuned"))
    return str(found[-1].id)


def test_an_evaluation_is_accessible_at_every_width(pages: Pages) -> None:
    pages.look(f"/evaluations/{find_evaluation()}", "evaluation")


def test_a_filter_of_rows_is_in_the_url(pages: Pages) -> None:
    page = pages.open(f"/evaluations/{find_evaluation()}")
    page.get_by_label("Worse").check()
    page.wait_for_url("**filter=lost*")
    expect(page.locator(".change-won")).to_have_count(0)
    expect(page.locator(".change-lost")).to_have_count(20)
    page.reload()
    expect(page.get_by_label("Worse")).to_be_checked()


def test_compared_runs_are_accessible_at_every_width(pages: Pages) -> None:
    runs = [pages.runs[name][0].id for name in ("ko-en-news", "ko-en-news-lr-sweep")]
    pages.look(f"/compare?run={runs[0]}&run={runs[1]}", "compared-runs")


def test_samples_are_accessible_at_every_width(pages: Pages) -> None:
    pages.look(f"/runs/{pages.runs['support-chat-v3'][0].id}/samples", "samples")


def test_a_new_evaluation_keeps_what_is_chosen(pages: Pages) -> None:
    page = pages.open("/evaluations?model=ko-en-tuned")
    page.locator("#evaluations input").first.check()
    with read_session() as session:
        found, _ = list_evaluations(session, PageQuery(), EvaluationFilters(model="ko-en-tuned"))
    seeded_results.add_many_evaluations(found[0], 1)
    expect(page.locator("#evaluations tr")).to_have_count(2)
    expect(page.locator("#evaluations input").first).not_to_be_checked()
    expect(page.locator("#evaluations input").last).to_be_checked()


def test_what_a_run_has_produced_is_accessible(pages: Pages) -> None:
    with read_session() as session:
        run_id = get_evaluation(session, find_evaluation()).run_id
    page = pages.open(f"/runs/{run_id}")
    expect(page.locator(".run-outcome .verdict")).to_be_visible()
    assert find_violations(page) == []
    page.locator(".crumbs a").last.click()
    expect(page.locator("#runs .verdict")).to_be_visible()
    assert find_violations(page) == []
