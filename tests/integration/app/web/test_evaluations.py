"""Pages of evaluations: the list, the scores with their intervals, the rows, and the leaderboard."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from app.storage.database import transaction
from app.storage.opening import get_store
from app.tables import Dataset, Evaluation
from app.web.application import list_page_routes
from tests.integration.app.web import seeded_results
from tests.integration.app.web.conftest import Browser


@pytest.fixture
def stored(browser: Browser, tmp_path: Path) -> Sequence[Evaluation]:
    return seeded_results.add_evaluations(tmp_path, 60)


def changes_of(text: str) -> list[str]:
    return re.findall(r'class="change change-(\w+)"', text)


def test_an_empty_list_says_what_to_do_first(browser: Browser) -> None:
    assert "Submit a job with a stage “evaluate”" in browser.get("/evaluations").text
    assert "No evaluation matches these filters." in browser.get("/evaluations?metric=bleu").text


def test_the_list_shows_scores_with_intervals_and_is_filtered(
    browser: Browser, stored: Sequence[Evaluation]
) -> None:
    shown = browser.get("/evaluations?model=ko-en-tuned&metric=").text
    assert "ko-en-tuned" in shown and "ko-en-base" not in shown
    assert re.search(r"<b>0\.\d+</b> <span[^>]*>\[0\.\d+, 0\.\d+\]", shown)


def test_a_thousand_evaluations_are_pages(browser: Browser, stored: Sequence[Evaluation]) -> None:
    seeded_results.add_many_evaluations(stored[1], 1000)
    first = browser.get("/evaluations?metric=exact_match").text
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following is not None and "metric=exact_match" in following[1]
    second = browser.get(following[1].replace("&amp;", "&")).text
    assert first.count("<tr id=") == second.count("<tr id=") == 50
    assert "model-0949" in second and "model-0950" not in second


def test_a_page_shows_both_models_their_difference_slices_and_gate(
    browser: Browser, stored: Sequence[Evaluation]
) -> None:
    shown = browser.get(f"/evaluations/{stored[0].id}").text
    for text in ("ko-en-base", "length=short", "it must be at least 0.7", "same prompt", "undecided", "chrf"):
        assert text in shown, text
    assert shown.count('<svg class="interval') == 6


def test_rows_that_differ_come_first_and_a_filter_selects_them(
    browser: Browser, stored: Sequence[Evaluation]
) -> None:
    path = f"/evaluations/{stored[0].id}"
    assert "tied" not in changes_of(browser.get(path).text)
    assert set(changes_of(browser.get(f"{path}?filter=lost").text)) == {"lost"}
    last = browser.get(f"{path}?after=40").text
    assert set(changes_of(last)) == {"tied"} and 'rel="next"' not in last


def test_a_filter_that_does_not_apply_is_explained_in_place_of_the_rows(
    browser: Browser, stored: Sequence[Evaluation]
) -> None:
    shown = browser.get(f"/evaluations/{stored[0].id}?metric=nothing")
    assert shown.status_code == 200 and "has no metric" in shown.text and "length=short" in shown.text


def test_damaged_rows_are_explained_and_the_scores_remain(
    browser: Browser, stored: Sequence[Evaluation]
) -> None:
    get_store().delete(stored[0].artifact)
    shown = browser.get(f"/evaluations/{stored[0].id}").text
    assert "is damaged" in shown and "length=short" in shown


def test_a_response_of_a_model_is_escaped(browser: Browser, stored: Sequence[Evaluation]) -> None:
    with transaction() as session:
        session.get_one(Evaluation, stored[0].id).model = "<script>x</script>"
    for path in ("/evaluations", f"/evaluations/{stored[0].id}"):
        assert "<script>x" not in browser.get(path).text


def test_the_leaderboard_ranks_the_models_of_a_dataset(
    browser: Browser, stored: Sequence[Evaluation], make_dataset: Callable[..., Dataset]
) -> None:
    dataset = make_dataset("held-out")
    with transaction() as session:
        for each in stored:
            session.get_one(Evaluation, each.id).dataset_id = dataset.id
    shown = browser.get(f"/leaderboard?dataset={dataset.id}&metric=exact_match").text
    assert shown.index("ko-en-tuned") < shown.index("ko-en-base")
    nothing = browser.get(f"/leaderboard?dataset={dataset.id}&metric=bleu").text
    assert "No evaluation on this dataset has this metric." in nothing


def test_an_evaluation_that_does_not_exist_has_an_error_page(browser: Browser) -> None:
    assert browser.get("/evaluations/evaluation_none").status_code == 404
    assert browser.get("/leaderboard?dataset=dataset_none&metric=x").status_code == 404


def test_the_list_is_live(browser: Browser) -> None:
    assert "/evaluations/stream" in {route.path for route in list_page_routes()}
