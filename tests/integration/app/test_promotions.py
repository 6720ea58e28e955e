"""Promotions: which are refused at POST, and what happens to the alias when a run ends without its worker."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.aliases.promotions import begin_next_step, begin_promotion, shift_targets
from app.http.paging import PageQuery
from app.promotions.service import list_promotions, list_unfinished_promotions
from app.routing_table.traffic import read_traffic
from app.runs import lifecycle
from app.storage.database import read_session, transaction
from app.tables import AliasTraffic, Dataset, Promotion, PromotionStatus, Run, RunStatus, Worker
from tests.integration.app.test_aliases import code_of, get_shares, put_alias
from tests.integration.app.test_deployments import insert_row
from trainers.configs import Queue, StageKind

DEPLOY = {"stage": "deploy", "model": "org/base", "deployment": "next"}
STEPS = [{"share": 0.25}, {"share": 1.0}]
Stage = dict[str, Any]
# The checks of a posted job are the same on both databases.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def promote(**fields: Any) -> Stage:
    return {
        "stage": "promote",
        "alias": "prod",
        "steps": STEPS,
        "conditions": {"max_error_rate": 0.02},
        **fields,
    }


@pytest.fixture(autouse=True)
def alias(client: TestClient) -> None:
    """Create the alias `prod`, which routes to `stable`."""
    insert_row(name="stable")
    put_alias(client, stable=1)


def post(client: TestClient, *stages: Stage, path: str = "") -> Any:
    return client.post(f"/api/v1/jobs{path}", json={"name": "job", "stages": list(stages)})


REFUSED: list[tuple[Stage, str, str]] = [
    ({"alias": "other"}, "alias", "There is no alias 'other'; there are: prod."),
    ({"deployment": "absent"}, "deployment", "No deployment 'absent' is ready or asleep"),
    ({"deployment": "stable"}, "deployment", "routes to 'stable' alone"),
    ({"needs": []}, "deployment", "no stage before this one does"),
    ({"deployment": "next", "needs": []}, "deployment", "add it to `needs`"),
    ({"steps": [{"share": 0.5}, {"share": 0.5}, {"share": 1}]}, "steps", "must rise"),
    ({"steps": [{"share": 0.5}, {"share": 0.9}]}, "steps", "the last step must have the share 1"),
    ({"steps": []}, "steps", "must not be empty"),
    ({"conditions": {}}, "conditions", "set at least one"),
    ({"conditions": {"max_error_rate": 0}}, "conditions.max_error_rate", "0"),
    ({"conditions": {"max_errors": 3}}, "conditions.max_errors", "max_error_rate"),
    ({"min_seconds": 9, "max_seconds": 5}, "", "step 1 lasts at least 9 s and at most 5 s"),
    ({"limits": {"max_seconds": 5}}, "", "set max_seconds of its steps"),
]


@on_sqlite
def test_what_cannot_work_is_refused_with_its_field(client: TestClient) -> None:
    for stage, field, words in REFUSED:
        response = post(client, DEPLOY, promote(**stage))
        fields = response.json()["error"]["fields"]
        found = {each["field"].removeprefix("stages.1").strip("."): each["message"] for each in fields}
        assert response.status_code == 422 and words in found[field], found


@on_sqlite
def test_a_judge_is_checked_like_that_of_an_evaluation(
    client: TestClient, make_dataset: Callable[..., Dataset]
) -> None:
    judge = {
        "judge": {"endpoint": "none", "model": "m"},
        "rubric": "r",
        "dataset": "absent",
        "min_preference": 0.4,
    }
    response = post(client, DEPLOY, promote(conditions={"judge": judge}))
    fields = [each["field"] for each in response.json()["error"]["fields"]]
    assert fields == ["stages.1.conditions.judge.judge.endpoint", "stages.1.conditions.judge.dataset"]


@on_sqlite
def test_the_plan_names_the_deployment_and_the_requests_that_a_condition_needs(client: TestClient) -> None:
    plan = post(client, DEPLOY, promote(), path="/dry-run").json()["stages"][1]
    assert plan["config"]["deployment"] == "next"
    [warning] = plan["warnings"]
    assert "max_error_rate needs at least 226 requests" in warning and "min_requests is 100" in warning
    job = post(client, DEPLOY, promote()).json()
    assert [each["code"] for each in job["warnings"]] == ["promotion_slow"]


def test_the_others_keep_their_proportions() -> None:
    targets = [
        {"deployment": "a", "share": 0.6},
        {"deployment": "b", "share": 0.3},
        {"deployment": "c", "share": 0.1},
    ]
    shifted = {each["deployment"]: each["share"] for each in shift_targets(targets, "c", 0.25)}
    assert shifted == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25})
    assert shift_targets(targets, "c", 1.0) == [{"deployment": "c", "share": 1.0}]


@pytest.fixture
def begun(client: TestClient, make_worker: Callable[..., Worker]) -> Run:
    """Return a run that has given `next` its first share of the alias."""
    insert_row(name="next")
    assert post(client, promote(deployment="next")).status_code == 201
    with transaction() as session:
        run = lifecycle.claim(session, make_worker().id, [Queue.cpu], [StageKind.promote], 60)
        assert run is not None
        begin_promotion(session, run, "prod", "next", 0.25)
    assert get_shares(client) == {"stable": 0.75, "next": 0.25}
    return run


def promotion_of(run: Run) -> Promotion:
    with read_session() as session:
        return session.get_one(Promotion, run.id)


def report(client: TestClient, version: int, deployment_id: str, reporter: str = "a", **counts: Any) -> None:
    names = ("seconds", "cancelled_seconds", "first_token_seconds", "cancelled_first_token_seconds")
    body: dict[str, Any] = {name: {} for name in names} | dict.fromkeys(
        ("succeeded", "failed", "rejected", "cancelled"), 0
    )
    item = {"alias": "prod", "version": version, "deployment_id": deployment_id, "counts": body | counts}
    sent = {"reporter": f"gateway_{reporter * 24}", "items": [item]}
    assert client.post("/api/v1/traffic", json=sent).status_code == 204


def read_counts(run: Run) -> dict[int, dict[str, tuple[int, int]]]:
    with read_session() as session:
        found = read_traffic(session, session.get_one(Promotion, run.id))
        return {
            version: {name: (counts.succeeded, counts.failed) for name, counts in each.items()}
            for version, each in found.items()
        }


def test_routes_are_measured_while_the_alias_has_the_targets_of_its_promotion(
    client: TestClient, begun: Run
) -> None:
    def measured() -> Any:
        routes = {
            each["name"]: each["measured_version"] for each in client.get("/api/v1/routes").json()["items"]
        }
        assert routes["stable"] is None
        return routes["prod"]

    assert measured() == 2
    put_alias(client, stable=1)
    assert measured() is None


def test_reports_of_a_gateway_replace_each_other_and_those_of_several_add_up(
    client: TestClient, begun: Run
) -> None:
    for succeeded in (3, 5, 5):
        report(client, 2, "d", succeeded=succeeded, seconds={"10": succeeded})
    report(client, 2, "d", "b", failed=2)
    report(client, 9, "d", failed=2)
    assert read_counts(begun) == {2: {"d": (5, 2)}}


@on_sqlite
def test_a_report_out_of_bounds_is_refused(client: TestClient) -> None:
    item: Stage = {"alias": "prod", "version": 1, "deployment_id": "d", "counts": {"succeeded": -1}}
    sent = {"reporter": "../gateway", "items": [item]}
    fields = {each["field"] for each in client.post("/api/v1/traffic", json=sent).json()["error"]["fields"]}
    assert {"reporter", "items.0.counts.succeeded", "items.0.counts.seconds"} <= fields
    for histogram in ({"../x": 1}, {"5": -1}, {str(bucket): 1 for bucket in range(800)}):
        item["counts"] = {"seconds": histogram}
        refused = client.post("/api/v1/traffic", json=sent).json()["error"]["fields"]
        assert any(each["field"].startswith("items.0.counts.seconds") for each in refused)


def test_the_counts_of_a_step_begin_at_zero_and_end_with_the_promotion(
    client: TestClient, begun: Run
) -> None:
    report(client, 2, "d", succeeded=3)
    with transaction() as session:
        begin_next_step(session, session.get_one(Promotion, begun.id), 1.0, {"share": 0.25})
    report(client, 3, "d", succeeded=1)
    assert read_counts(begun) == {2: {"d": (3, 0)}, 3: {"d": (1, 0)}}
    assert (promotion_of(begun).step, promotion_of(begun).steps) == (1, [{"share": 0.25}])
    with transaction() as session:
        lifecycle.move(session, begun.id, RunStatus.succeeded)
    assert (promotion_of(begun).status, get_shares(client)) == (PromotionStatus.succeeded, {"next": 1})
    report(client, 3, "d", succeeded=2)
    with read_session() as session:
        assert session.exec(select(AliasTraffic)).all() == []


def test_a_run_that_is_cancelled_without_a_worker_rolls_back(client: TestClient, begun: Run) -> None:
    with transaction() as session:
        lifecycle.move(session, begun.id, RunStatus.queued)
    assert get_shares(client) == {"stable": 0.75, "next": 0.25}
    assert client.post(f"/api/v1/jobs/{begun.job_id}/cancel").json()["status"] == "cancelled"
    assert get_shares(client) == {"stable": 1}
    last = client.get("/api/v1/aliases/prod/history").json()["items"][0]
    assert (last["restored_version"], last["changed_by"]) == (1, begun.id)
    events = client.get(f"/api/v1/runs/{begun.id}/events", params={"type": "status"}).json()["items"]
    assert events[-1]["data"] == {
        "status": "cancelled",
        "alias": "prod",
        "promotion": "rolled_back",
        "restored_version": 1,
    }


def test_an_alias_that_a_person_has_moved_is_not_rolled_back(client: TestClient, begun: Run) -> None:
    put_alias(client, stable=0.5, next=0.5)
    with transaction() as session:
        lifecycle.move(session, begun.id, RunStatus.failed)
    assert (promotion_of(begun).status, get_shares(client)) == ("ended", {"stable": 0.5, "next": 0.5})


def test_a_deployment_that_a_rollback_needs_is_stopped_only_by_force(client: TestClient, begun: Run) -> None:
    with transaction() as session:
        begin_next_step(session, session.get_one(Promotion, begun.id), 1.0, {})
    assert get_shares(client) == {"next": 1}
    stable = client.get("/api/v1/deployments", params={"name": "stable"}).json()["items"][0]["id"]
    url = f"/api/v1/deployments/{stable}/stop"
    assert code_of(client.post(url)) == (409, "deployment_has_alias")
    assert client.post(url, params={"force": True}).is_success
    with transaction() as session:
        lifecycle.move(session, begun.id, RunStatus.failed)
    # Without any target the alias would respond with 503.
    assert (promotion_of(begun).status, get_shares(client)) == ("ended", {"next": 1})


def test_an_alias_has_one_promotion_at_a_time_and_its_job_can_be_deleted(
    client: TestClient, begun: Run, make_worker: Callable[..., Worker]
) -> None:
    other = post(client, promote(deployment="next")).json()
    with transaction() as session:
        run = lifecycle.claim(session, make_worker().id, [Queue.cpu], [StageKind.promote], 60)
        assert run is not None
        with pytest.raises(Exception, match=f"The run {begun.id} is promoting"):
            begin_promotion(session, run, "prod", "next", 0.5)
        lifecycle.move(session, run.id, RunStatus.failed)
        lifecycle.move(session, begun.id, RunStatus.failed)
    for job_id in (other["id"], begun.job_id):
        assert client.delete(f"/api/v1/jobs/{job_id}").status_code == 204


def test_a_promotion_is_read_with_the_traffic_of_its_step(client: TestClient, begun: Run) -> None:
    promotion = promotion_of(begun)
    report(client, promotion.version, promotion.deployment_id, succeeded=9, failed=1)
    with read_session() as session:
        [found], following = list_promotions(session, "prod", PageQuery())
        others, _ = list_promotions(session, "other", PageQuery())
        [unfinished] = list_unfinished_promotions(session)
    assert (found.run_id, found.is_active, following) == (begun.id, True, None) and unfinished == found
    assert others == []
    assert [step.state for step in found.steps] == ["current", "planned"]
    assert (found.steps[0].measured["requests"], found.steps[0].conditions[0]["state"]) == (10, "undecided")


def test_the_promotions_of_an_alias_are_listed_page_by_page(client: TestClient, begun: Run) -> None:
    later = post(client, promote(deployment="next")).json()["runs"][0]["id"]
    first = client.get("/api/v1/aliases/prod/promotions", params={"limit": 1}).json()
    assert [each["run_id"] for each in first["items"]] == [later] and first["items"][0]["outcome"] is None
    query = {"limit": 1, "after": first["next"]}
    second = client.get("/api/v1/aliases/prod/promotions", params=query).json()
    assert [each["run_id"] for each in second["items"]] == [begun.id] and second["next"] is None
    assert [step["state"] for step in second["items"][0]["steps"]] == ["current", "planned"]
    assert client.get("/api/v1/aliases/other/promotions").json() == {"items": [], "next": None}


@on_sqlite
def test_the_judgement_is_among_the_conditions_of_the_current_step(
    client: TestClient, make_dataset: Callable[..., Dataset], make_worker: Callable[..., Worker]
) -> None:
    insert_row(name="next")
    judge = {
        "judge": {"deployment": "stable"},
        "rubric": "r",
        "dataset": make_dataset("prompts").id,
        "min_preference": 0.4,
    }
    posted = post(client, promote(deployment="next", conditions={"judge": judge}))
    assert posted.status_code == 201, posted.text
    with transaction() as session:
        run = lifecycle.claim(session, make_worker().id, [Queue.cpu], [StageKind.promote], 60)
        assert run is not None
        begin_promotion(session, run, "prod", "next", 0.25).judgement = {
            "value": 0.3,
            "n": 40,
            "interval_95": [0.2, 0.39],
        }
    [condition] = client.get("/api/v1/aliases/prod/promotions").json()["items"][0]["steps"][0]["conditions"]
    assert (condition["condition"], condition["state"], condition["n"]) == ("judge", "violated", 40)
