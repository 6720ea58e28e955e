"""A key that may use some models reaches no other one through what its requests cause later.

Attacks: jobs, graders, runs of evals, fine-tuning jobs and promotions that name another deployment or an
endpoint of the operator, at any depth; jobs and evals of other keys, started again; aliases that lead to
another model.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col
from starlette.testclient import TestClient

from app.keys import token_use
from app.settings import EvaluationEndpoint, Settings
from app.storage.database import read_session, transaction
from app.tables import Alias, ApiKey, Deployment, DeploymentStatus, Run, RunStatus, Scope
from tests.integration.trainers.metrics.judge_server import serve_judge
from tests.security.regression import Regression, ignore
from trainers.configs import EngineKind, Queue, StageKind
from trainers.configs.stages.migration.fetch import OPENAI

Headers = dict[str, str]
MAKE_JOB, RUN_GRADER = "/api/v1/jobs", "/v1/fine_tuning/alpha/graders/run"
SCORE = {"type": "score_model", "name": "judge", "input": [{"role": "user", "content": "Rate it."}]}
JUDGE = {"metric": "judge_score", "rubric": "good"}


@pytest.fixture
def limited(make_key: Callable[..., Headers]) -> Headers:
    """Return the headers of a key that may use the deployment `mine` alone."""
    return make_key(Scope.read, Scope.write, Scope.inference, models=["mine"])


@pytest.fixture
def admin(make_key: Callable[..., Headers]) -> Headers:
    return make_key(Scope.admin)


@pytest.fixture(autouse=True)
def deployments(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deploy `mine` and `other`, and name an endpoint, of which OpenAI's name is `gpt-4o`."""
    monkeypatch.setattr(
        settings,
        "evaluation_endpoints",
        {"cheap": EvaluationEndpoint(url="http://127.0.0.1:1/v1", api_key="k")},
    )
    monkeypatch.setattr(settings, "grader_models", {"gpt-4o": "cheap/judge"})
    monkeypatch.setattr(settings, "grader_embedding_model", "cheap/embedder")
    with transaction() as session:
        for name in ("mine", "other"):
            session.add(
                Deployment(
                    name=name,
                    base="hub/base",
                    engine=EngineKind.hf,
                    queue=Queue.cpu,
                    status=DeploymentStatus.ready,
                    address="http://127.0.0.1:1",
                )
            )
        session.add(Alias(name="mine-prod", targets=[{"deployment": "mine", "share": 1.0}], version=1))


def evaluate(**fields: Any) -> dict[str, Any]:
    stage = {"stage": "evaluate", "model": {"deployment": "mine"}, "dataset": "rows", **fields}
    return {"name": "job", "stages": [stage]}


def grade(**fields: Any) -> dict[str, Any]:
    return {"grader": SCORE | fields, "model_sample": "text", "item": {}}


def multi(**graders: Any) -> dict[str, Any]:
    return {"type": "multi", "name": "both", "graders": graders, "calculate_output": "+".join(graders)}


COSINE = {
    "type": "text_similarity",
    "name": "near",
    "evaluation_metric": "cosine",
    "input": "a",
    "reference": "b",
}
REWARDS = [{"kind": "grader", "grader": SCORE | {"model": {"deployment": "other"}}}]
ATTACKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "the evaluated model": (MAKE_JOB, evaluate(model={"deployment": "other"}), "other"),
    "the baseline": (MAKE_JOB, evaluate(baseline={"deployment": "other"}), "other"),
    "a further model": (
        MAKE_JOB,
        evaluate(others={"third": {"endpoint": "cheap", "model": "gpt"}}),
        "cheap/gpt",
    ),
    "a judge": (MAKE_JOB, evaluate(metrics=[JUDGE | {"judge": {"deployment": "other"}}]), "other"),
    "a grader of a metric": (
        MAKE_JOB,
        evaluate(metrics=[{"metric": "grader", "name": "g", "grader": multi(a=SCORE | {"model": "other"})}]),
        "other",
    ),
    "a reward": (
        MAKE_JOB,
        {
            "name": "job",
            "stages": [{"stage": "grpo", "base": "hub/base", "dataset": "rows", "rewards": REWARDS}],
        },
        "other",
    ),
    "the plan of a job": (f"{MAKE_JOB}/dry-run", evaluate(model={"deployment": "other"}), "other"),
    "a grader": (RUN_GRADER, grade(model="other"), "other"),
    "a grader by OpenAI's name": (RUN_GRADER, grade(model="gpt-4o"), "cheap/judge"),
    "a grader of an endpoint": (RUN_GRADER, grade(model="cheap/judge"), "cheap/judge"),
    "a grader in a formula": (
        RUN_GRADER,
        {"grader": multi(a=SCORE | {"model": "mine"}, b=SCORE | {"model": "other"}), "model_sample": "x"},
        "other",
    ),
    "the embedding model of the settings": (
        RUN_GRADER,
        {"grader": COSINE, "model_sample": "x"},
        "cheap/embedder",
    ),
    "a grader that is only checked": (
        "/v1/fine_tuning/alpha/graders/validate",
        {"grader": SCORE | {"model": "other"}},
        "other",
    ),
    "a criterion of an eval": (
        "/v1/evals",
        {
            "data_source_config": {"type": "custom", "item_schema": {}},
            "testing_criteria": [SCORE | {"model": "other"}],
        },
        "other",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_request_that_names_another_model_is_refused(
    client: TestClient, limited: Headers, make_dataset: Callable[..., Any], attack: str
) -> None:
    make_dataset(name="rows")
    path, body, name = ATTACKS[attack]
    refused = client.post(path, json=body, headers=limited)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (403, "model_not_allowed"), error
    assert repr(name) in error["message"]


def test_an_eval_of_another_key_asks_no_other_model(
    client: TestClient, limited: Headers, admin: Headers
) -> None:
    source = {"type": "file_content", "content": [{"item": {}, "sample": {"output_text": "a"}}]}
    generated = {
        "type": "completions",
        "model": "other",
        "source": source,
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "hi"}]},
    }
    for model, data_source in (("other", {"type": "jsonl", "source": source}), ("mine", generated)):
        body = {
            "data_source_config": {"type": "custom", "item_schema": {}},
            "testing_criteria": [SCORE | {"model": model}],
        }
        eval_id = client.post("/v1/evals", json=body, headers=admin).json()["id"]
        refused = client.post(f"/v1/evals/{eval_id}/runs", json={"data_source": data_source}, headers=limited)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")


def test_a_job_of_another_key_is_not_started_again(
    client: TestClient, limited: Headers, admin: Headers, make_dataset: Callable[..., Any]
) -> None:
    make_dataset(name="rows")
    job = client.post(MAKE_JOB, json=evaluate(model={"deployment": "other"}), headers=admin).json()["id"]
    for path, body, status in (
        ("replay", {}, None),
        ("retry", None, RunStatus.cancelled),
        ("resume", None, RunStatus.paused),
    ):
        if status is not None:
            with transaction() as session:
                session.execute(update(Run).values(status=status))
        refused = client.post(f"{MAKE_JOB}/{job}/{path}", json=body, headers=limited)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed"), path
    assert client.post(f"{MAKE_JOB}/{job}/resume", headers=admin).status_code == 200


def test_an_alias_leads_a_key_to_no_other_model(
    client: TestClient, limited: Headers, admin: Headers, make_dataset: Callable[..., Any]
) -> None:
    for name, target in (("mine", "other"), ("mine-prod", "other"), ("mine-prod", "mine")):
        body = {"targets": [{"deployment": target, "share": 1.0}]}
        refused = client.put(f"/api/v1/aliases/{name}", json=body, headers=limited)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    for target in ("other", "mine"):
        body = {"targets": [{"deployment": target, "share": 1.0}]}
        assert client.put("/api/v1/aliases/mine-prod", json=body, headers=admin).status_code == 200
    assert client.post("/api/v1/aliases/mine-prod/rollback", json={}, headers=limited).status_code == 403
    assert client.delete("/api/v1/aliases/mine-prod", headers=limited).status_code == 403
    promote = {
        "stage": "promote",
        "alias": "mine-prod",
        "deployment": "other",
        "steps": [{"share": 1.0}],
        "conditions": {"max_error_rate": 0.5},
    }
    refused = client.post(MAKE_JOB, json={"name": "job", "stages": [promote]}, headers=limited)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")


def test_a_key_wakes_no_other_model(client: TestClient, limited: Headers) -> None:
    with transaction() as session:
        session.execute(update(Deployment).values(status=DeploymentStatus.asleep))
        ids = {row.name: row.id for row in session.scalars(select(Deployment))}
    statuses = {
        name: client.post(f"/api/v1/deployments/{each}/wake", headers=limited).status_code
        for name, each in ids.items()
    }
    assert statuses == {"mine": 200, "other": 403}


def test_a_key_takes_no_name_of_another_model_and_stops_none(client: TestClient, limited: Headers) -> None:
    with read_session() as session:
        ids = {row.name: row.id for row in session.scalars(select(Deployment))}
    deploy = {"stage": "deploy", "model": "hub/base"}
    for name, allowed in (("other", False), ("mine", True)):
        answers = [
            client.post("/api/v1/deployments", json={"name": name, "model": "hub/base"}, headers=limited),
            client.post(
                MAKE_JOB, json={"name": "job", "stages": [deploy | {"deployment": name}]}, headers=limited
            ),
            client.post(f"/api/v1/deployments/{ids[name]}/stop", headers=limited),
            client.delete(f"/api/v1/deployments/{ids[name]}", headers=limited),
        ]
        codes = [answer.json()["error"]["code"] for answer in answers if answer.status_code == 403]
        assert codes == ([] if allowed else ["model_not_allowed"] * 4), [each.text for each in answers]


def test_a_key_deletes_no_fine_tuned_model_that_it_may_not_use(client: TestClient, limited: Headers) -> None:
    refused = client.delete("/v1/models/ft:base:org:other:1", headers=limited)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")


def test_only_an_admin_starts_a_rescue_again(
    client: TestClient, make_key: Callable[..., Headers], make_job: Callable[..., Any]
) -> None:
    [run] = make_job(RunStatus.failed, stage=StageKind.record, capability=OPENAI)
    retry = f"{MAKE_JOB}/{run.job_id}/retry"
    assert client.post(retry, headers=make_key(Scope.read, Scope.write)).status_code == 403
    with read_session() as session:
        assert session.get_one(Run, run.id).status is RunStatus.failed


def test_a_key_without_tokens_starts_nothing_that_uses_a_model(
    client: TestClient, make_key: Callable[..., Headers], make_dataset: Callable[..., Any]
) -> None:
    make_dataset(name="rows")
    spent = make_key(Scope.write, tokens_per_day=5)
    assert client.post(MAKE_JOB, json=evaluate(), headers=spent).status_code == 201
    with transaction() as session:
        token_use.add_tokens(session, find_key(), "test", 5)
    refused = client.post(RUN_GRADER, json=grade(model="mine"), headers=spent)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
    assert (refused.headers["x-should-retry"], "retry-after" in refused.headers) == ("false", True)
    assert client.post(MAKE_JOB, json=evaluate(), headers=spent).status_code == 429
    assert client.post(MAKE_JOB, json=evaluate(model="hub/base"), headers=spent).status_code == 201


def test_the_tokens_of_a_grader_count_for_the_key(
    client: TestClient, make_key: Callable[..., Headers], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.dumps({"steps": [], "result": 0.5})
    with serve_judge(lambda _: (200, answer)) as judge:
        named = EvaluationEndpoint(url=judge.url, api_key="k")
        monkeypatch.setattr(settings, "evaluation_endpoints", {"cheap": named})
        headers = make_key(Scope.write, models=["cheap/*"])
        result = client.post(RUN_GRADER, json=grade(model="cheap/judge"), headers=headers).json()
    assert result["reward"] == 0.5
    with read_session() as session:
        tokens = token_use.count_tokens_today(session, [find_key()])
    assert tokens == {find_key(): result["metadata"]["token_usage"]}


def find_key() -> str:
    with read_session() as session:
        return session.scalars(select(col(ApiKey.id))).one()


REGRESSIONS = [
    Regression(
        "jobs are created whatever models they use",
        "app.jobs.service:check_served_use",
        ignore,
        "test_a_request_that_names_another_model_is_refused",
    ),
    Regression(
        "graders use any model",
        "app.graders.service:check_served_use",
        ignore,
        "test_a_request_that_names_another_model_is_refused",
    ),
    Regression(
        "jobs of other keys are started again",
        "app.jobs.actions:check_served_use",
        ignore,
        "test_a_job_of_another_key_is_not_started_again",
    ),
    Regression(
        "aliases lead to any model",
        "app.aliases.service:check_names",
        ignore,
        "test_an_alias_leads_a_key_to_no_other_model",
    ),
    Regression(
        "any name can be taken and stopped",
        "app.deployments.service:check_names",
        ignore,
        "test_a_key_takes_no_name_of_another_model_and_stops_none",
    ),
    Regression(
        "any model can be woken",
        "app.deployments.service:check_names",
        ignore,
        "test_a_key_wakes_no_other_model",
    ),
    Regression(
        "the tokens of graders are not counted",
        "app.graders.run:add_tokens",
        ignore,
        "test_the_tokens_of_a_grader_count_for_the_key",
    ),
]
