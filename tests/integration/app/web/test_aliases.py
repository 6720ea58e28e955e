"""The page of an alias: canaries, promotions by steps with their measured traffic, and earlier versions."""

import re
from collections.abc import Callable

import pytest

from app.aliases.promotions import end_promotion
from app.aliases.service import get_alias
from app.http.paging import PageQuery
from app.promotions.service import list_promotions
from app.runs import lifecycle
from app.runs.attempt_outcome import AttemptOutcome, NewEvent
from app.storage.database import read_session, transaction
from app.tables import Dataset, EventType, Run, Scope
from tests.integration.app.web import seeded_serving as seeded
from tests.integration.app.web.conftest import Browser
from tests.integration.app.web.seeded_serving import PromotionFailed

PAGE = "/aliases/news"


@pytest.fixture(autouse=True)
def _deployments(browser: Browser) -> None:
    """Add deployments and the alias `news`, of which `news-v2` has a tenth."""
    seeded.add_shown_deployments()


def shares(name: str = "news") -> dict[str, float]:
    with read_session() as session:
        return {each["deployment"]: each["share"] for each in get_alias(session, name).targets}


def test_an_alias_is_created_and_deleted(browser: Browser) -> None:
    created = browser.post("/aliases", page="/deployments", name="prod", deployment="news-v1")
    assert (created.headers["location"], shares("prod")) == ("/aliases/prod", {"news-v1": 1.0})
    shown = browser.get("/aliases/prod").text
    assert re.findall(r"<option>([^<]+)</option>", shown)[:2] == ["asleep", "news-v2"]
    assert browser.post("/aliases", page="/deployments", name="No", deployment="x").status_code == 422
    assert browser.post("/aliases/prod/delete", page=PAGE).status_code == 303
    assert browser.get("/aliases/prod").status_code == 404


def test_a_canary_gets_its_share_and_a_version_is_restored(browser: Browser) -> None:
    assert browser.post(f"{PAGE}/share", page=PAGE, deployment="asleep", percent="20").status_code == 303
    assert shares() == pytest.approx({"news-v1": 0.72, "news-v2": 0.08, "asleep": 0.2})
    assert browser.post(f"{PAGE}/rollback", page=PAGE, version="1").status_code == 303
    shown = browser.get(PAGE).text
    assert shares() == {"news-v1": 1.0} and "restored version 1" in shown
    alone = browser.post(f"{PAGE}/share", page=PAGE, deployment="news-v1", percent="20")
    assert alone.status_code == 422 and "alone" in alone.text
    unready = browser.post(f"{PAGE}/share", page=PAGE, deployment="ill", percent="20")
    assert unready.status_code == 409 and "no deployment of this name is ready" in unready.text


def test_a_rollback_that_is_sent_twice_restores_what_the_page_has_shown(browser: Browser) -> None:
    browser.post(f"{PAGE}/share", page=PAGE, deployment="asleep", percent="20")
    form = re.search(r'action="/aliases/news/rollback".*?</form>', browser.get(PAGE).text, re.DOTALL)
    assert form is not None
    fields = dict(re.findall(r'name="(version)" value="(\d+)"', form[0]))
    for _ in range(2):
        assert browser.post(f"{PAGE}/rollback", page=PAGE, **fields).status_code == 303
    assert shares() == pytest.approx({"news-v1": 0.9, "news-v2": 0.1})


def test_a_share_that_cannot_be_given_is_refused(browser: Browser) -> None:
    misspelt = browser.post(f"{PAGE}/share", page=PAGE, deployment="News v2", percent="20")
    assert misspelt.status_code == 409 and "no deployment of this name is ready" in misspelt.text
    for number in range(18):
        seeded.add_deployment(f"more-{number}")
        assert browser.post(f"{PAGE}/share", page=PAGE, deployment=f"more-{number}", percent="1").is_redirect
    full = browser.post(f"{PAGE}/share", page=PAGE, deployment="asleep", percent="1")
    assert full.status_code == 422 and "has 20 deployments" in full.text
    too_much = browser.post(f"{PAGE}/share", page=PAGE, deployment="more-1", percent="101")
    assert too_much.status_code == 422 and "percent: Input should be" in too_much.text


def test_a_promotion_is_a_job_with_the_values_of_the_form(browser: Browser) -> None:
    form = {"deployment": "news-v2", "steps": "25, 50, 100", "max_error_percent": "2", "min_requests": "230"}
    for _ in range(2):
        assert browser.post(f"{PAGE}/promotions", page=PAGE, key="k", **form).status_code == 303
    (run_id,) = re.findall(r"/promotions/(run_\w+)/abort\" hx-post", browser.get(PAGE).text)
    shown = browser.get(PAGE).text
    assert "needs 230" in shown and shown.count(">Planned<") == 3
    for faulty, words in (({"steps": "a, b"}, "percentages"), ({"steps": "50, 20"}, "must rise")):
        refused = browser.post(f"{PAGE}/promotions", page=PAGE, **{**form, **faulty})
        assert refused.status_code == 422 and words in refused.text
    assert browser.post(f"{PAGE}/promotions/{run_id}/abort", page=PAGE).status_code == 303
    assert ">Cancelled<" in browser.get(PAGE).text
    assert browser.post(f"{PAGE}/promotions/run_none/abort", page=PAGE).status_code == 404


def test_a_promotion_can_have_a_judge(browser: Browser, make_dataset: Callable[..., Dataset]) -> None:
    form = {"deployment": "news-v2", "steps": "25, 100", "max_error_percent": ""}
    judge = {
        "judge": "asleep",
        "judge_rubric": "The answer is correct.",
        "judge_dataset": make_dataset(name="prompts").name,
        "judge_min_percent": "45",
    }
    incomplete = {**form, **judge, "judge_rubric": ""}
    refused = browser.post(f"{PAGE}/promotions", page=PAGE, **incomplete)
    assert refused.status_code == 422 and "judge_rubric" in refused.text
    # A field alone is not taken for no judge.
    without = {**form, "max_error_percent": "5", "judge_rows": "10"}
    assert browser.post(f"{PAGE}/promotions", page=PAGE, **without).status_code == 422
    assert browser.post(f"{PAGE}/promotions", page=PAGE, **form, **judge).status_code == 303
    with read_session() as session:
        [found], _ = list_promotions(session, "news", PageQuery())
        condition = session.get_one(Run, found.run_id).config["conditions"]["judge"]
    assert condition["judge"] == {"deployment": "asleep"} and condition["min_preference"] == 0.45
    shown = browser.get(PAGE).text
    assert '<option value="prompts">' in shown and "in both orders" in shown


def test_older_promotions_have_a_page(browser: Browser) -> None:
    runs = [seeded.submit_promotion() for _ in range(11)]
    first = browser.get(PAGE).text
    assert runs[0] not in first and runs[1] in first
    (older,) = re.findall(r'rel="next" href="([^"]+)"', first)
    shown = browser.get(older).text
    assert runs[0] in shown and runs[2] not in shown


def test_a_running_promotion_shows_its_traffic_and_is_aborted(browser: Browser) -> None:
    run_id = seeded.add_shown_promotions()
    shown = browser.get(PAGE).text
    assert ">119 <" in shown and ">0.84 %<" in shown
    assert shown.count(">Now<") == 1 and shown.count(">Stopped<") == 1 and shown.count(">Passed<") == 1
    assert "1 of 119 requests failed" in shown and "41 of 221 requests failed" in shown
    assert "A promotion is moving this alias." in shown
    assert "step 2 of 3, 119 of 230 requests" in browser.get("/deployments").text
    assert browser.post(f"{PAGE}/promotions/{run_id}/abort", page=PAGE).status_code == 303
    assert "It is being cancelled." in browser.get(PAGE).text


def test_an_aborted_promotion_keeps_what_was_measured(browser: Browser) -> None:
    run_id = seeded.add_shown_promotions()
    with transaction() as session:
        event = NewEvent(EventType.metrics, {"share": 0.5, "requests": 107.0, "error_rate": 0.0}, 2)
        lifecycle.append_events(session, run_id, 1, [event])
        end_promotion(session, run_id, roll_back=True)
        lifecycle.end_attempt(session, run_id, AttemptOutcome(PromotionFailed("stopped")), [], 1)
    shown = browser.get(PAGE).text
    assert ">107 <" in shown and shown.count(">Stopped<") == 2


def test_only_names_that_a_stage_can_have_are_promoted(browser: Browser) -> None:
    seeded.add_deployment("ft:starter:acme::1")
    choices = re.findall(r"<select[^>]*>(.*?)</select>", browser.get(PAGE).text, re.DOTALL)
    named = [re.findall(r"<option>([^<]+)", each) for each in choices]
    assert named[0] == ["news-v2", "asleep", "ft:starter:acme::1", "news-v1"]
    assert named[-1] == ["news-v2", "asleep", "news-v1"]


def test_a_key_without_write_reads_the_reason(browser: Browser, make_secret: Callable[..., str]) -> None:
    browser.post("/login", key=make_secret(Scope.read))
    assert browser.get(PAGE).text.count("lacks the scope “write”") >= 5
    for action in ("share", "promotions", "rollback", "delete"):
        assert browser.post(f"{PAGE}/{action}", page=PAGE, deployment="asleep").status_code == 403
