"""Unknown query parameters and values of another type than the documented one, on every route."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.application import built_app

# A request is parsed before the database is used.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
SFT = {"stage": "sft", "base": "starter", "dataset": "rows"}
OPERATIONS = [
    (method, path)
    for path, item in built_app().openapi()["paths"].items()
    if not path.startswith("/v1/")
    for method in item
]


def test_an_unknown_query_parameter_is_named_with_the_known_ones_on_every_route(client: TestClient) -> None:
    assert len(OPERATIONS) > 40
    for method, path in OPERATIONS:
        response = client.request(method, path.replace("{", "").replace("}", ""), params={"statsu": "failed"})
        assert response.status_code == 422, (method, path, response.text)
        assert response.json()["error"]["fields"][0]["field"] == "statsu"
    error = client.get("/api/v1/jobs", params={"statsu": "failed"}).json()["error"]
    assert error["message"] == (
        "The request is malformed. statsu: There is no such query parameter. "
        "Known are: after, label, limit, name, search, status."
    )
    unknown = client.get("/healthz?x=1").json()["error"]
    assert "takes no query parameters" in unknown["message"]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/api/v1/jobs", "status=failed&limit=3&label=team:a"),
        ("/api/v1/workers", "alive=true"),
        ("/api/v1/deployments", "name=x&limit=1"),
    ],
)
def test_a_known_query_parameter_is_text_and_is_converted(client: TestClient, path: str, query: str) -> None:
    assert client.get(f"{path}?{query}").status_code == 200


def test_a_name_that_does_not_fit_is_refused_with_the_characters_that_do(client: TestClient) -> None:
    body = {"name": "My Model!", "model": "org/model"}
    error = client.post("/api/v1/deployments", json=body).json()["error"]
    assert error["message"].startswith(
        "The request is malformed. name: A name has at most 63 lower-case letters"
    )


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("jobs/dry-run", {"name": "a", "priority": "5", "stages": [SFT]}, "priority"),
        ("jobs/dry-run", {"name": "a", "priority": True, "stages": [SFT]}, "priority"),
        ("jobs/dry-run", {"name": "a", "priority": 5.0, "stages": [SFT]}, "priority"),
        ("jobs/dry-run", {"name": "a", "stages": [SFT | {"max_steps": "9"}]}, "stages.0.max_steps"),
        ("jobs/dry-run", {"name": "a", "stages": [SFT | {"learning_rate": "1"}]}, "stages.0.learning_rate"),
        ("jobs/dry-run", {"name": "a", "stages": [SFT | {"learning_rate": True}]}, "stages.0.learning_rate"),
        ("jobs/dry-run", {"name": "a", "stages": [SFT | {"packing": "yes"}]}, "stages.0.packing"),
        ("jobs/dry-run", {"name": "a", "stages": [SFT | {"packing": 1}]}, "stages.0.packing"),
        ("deployments", {"name": "a", "model": "starter", "idle_seconds": "9"}, "idle_seconds"),
        ("deployments", {"name": "a", "model": "starter", "idle_seconds": True}, "idle_seconds"),
        (
            "deployments",
            {"name": "a", "model": "starter", "options": {"max_adapters": "4"}},
            "options.max_adapters",
        ),
        ("keys", {"name": "a", "scopes": ["read"], "requests_per_minute": "60"}, "requests_per_minute"),
        ("keys", {"name": "a", "scopes": ["read"], "requests_per_minute": True}, "requests_per_minute"),
        ("keys", {"name": "a", "scopes": ["admin"], "lock_service": "true"}, "lock_service"),
        ("aliases/a/rollback", {"version": "1"}, "version"),
    ],
)
def test_a_value_of_another_type_is_not_converted(
    client: TestClient, path: str, body: dict[str, Any], field: str
) -> None:
    response = client.post(f"/api/v1/{path}", json=body)
    assert response.status_code == 422, response.text
    assert [error["field"] for error in response.json()["error"]["fields"]] == [field]


def test_a_word_that_a_field_does_not_know_is_refused_with_the_one_that_it_knows(client: TestClient) -> None:
    stage = SFT | {"activation_checkpointing": "always"}
    (field,) = client.post("/api/v1/jobs/dry-run", json={"name": "a", "stages": [stage]}).json()["error"][
        "fields"
    ]
    assert field["field"] == "stages.0.activation_checkpointing"
    assert field["message"] == "Input should be a valid boolean, or 'auto'."


def test_an_integer_is_a_valid_number(client: TestClient) -> None:
    body = {"targets": [{"deployment": "a", "share": 1}]}
    assert client.put("/api/v1/aliases/x", json=body).status_code in (404, 409)
