"""Aliases over HTTP."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.aliases.service import give_share
from app.storage.database import transaction
from app.tables import DeploymentStatus
from tests.integration.app.test_deployments import insert_row, request


def put_alias(client: TestClient, name: str = "prod", **shares: float) -> Any:
    targets = [{"deployment": deployment, "share": share} for deployment, share in shares.items()]
    return client.put(f"/api/v1/aliases/{name}", json={"targets": targets})


def get_shares(client: TestClient, name: str = "prod") -> dict[str, float]:
    alias = client.get(f"/api/v1/aliases/{name}").json()
    return {target["deployment"]: target["share"] for target in alias["targets"]}


def code_of(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_repeated_rollbacks_restore_older_versions(client: TestClient) -> None:
    for name in "abc":
        insert_row(name=name)
    put_alias(client, a=1)
    put_alias(client, b=1)
    put_alias(client, b=0.5, c=0.5)
    for expected in ({"b": 1}, {"a": 1}):
        client.post("/api/v1/aliases/prod/rollback", json={})
        assert get_shares(client) == expected
    client.post("/api/v1/aliases/prod/rollback", json={"version": 3})
    assert get_shares(client) == {"b": 0.5, "c": 0.5}
    history = client.get("/api/v1/aliases/prod/history").json()["items"]
    assert [(one["version"], one["restored_version"]) for one in history][:3] == [(6, 3), (5, 1), (4, 2)]


def test_the_first_version_cannot_be_rolled_back(client: TestClient) -> None:
    insert_row(name="a")
    put_alias(client, a=1)
    assert code_of(client.post("/api/v1/aliases/prod/rollback", json={})) == (409, "nothing_to_restore")
    assert code_of(client.post("/api/v1/aliases/none/rollback", json={})) == (404, "alias_not_found")
    large = client.post("/api/v1/aliases/prod/rollback", json={"version": 2**31})
    assert (large.status_code, large.json()["error"]["fields"][0]["field"]) == (422, "version")


def test_a_recreated_alias_continues_its_versions(client: TestClient) -> None:
    insert_row(name="a")
    put_alias(client, a=1)
    assert client.delete("/api/v1/aliases/prod").status_code == 204
    assert client.get("/api/v1/aliases").json()["items"] == []
    assert put_alias(client, a=1).json()["version"] == 2


def test_an_alias_and_a_deployment_cannot_share_a_name(client: TestClient) -> None:
    insert_row(name="a")
    assert code_of(put_alias(client, "a", a=1)) == (409, "name_is_deployment")
    put_alias(client, a=1)
    assert code_of(client.post("/api/v1/deployments", json={"name": "prod", "model": "org/x"})) == (
        409,
        "name_is_alias",
    )


@pytest.mark.parametrize("shares", [{"a": 0.5}, {"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 1.0}, {}])
def test_shares_that_do_not_sum_to_one_are_rejected(client: TestClient, shares: dict[str, Any]) -> None:
    for name in "ab":
        insert_row(name=name)
    assert put_alias(client, **shares).status_code == 422


def test_a_target_must_be_ready_or_asleep(client: TestClient) -> None:
    request(name="soon")
    assert code_of(put_alias(client, soon=1)) == (409, "target_not_ready")
    insert_row(name="sleepy", status=DeploymentStatus.asleep, address=None)
    assert put_alias(client, sleepy=1).json()["targets"][0]["status"] == "asleep"


def test_a_target_of_an_alias_is_stopped_only_by_force(client: TestClient) -> None:
    stopped, kept = insert_row(name="a"), insert_row(name="b")
    put_alias(client, a=0.5, b=0.5)
    assert code_of(client.post(f"/api/v1/deployments/{stopped}/stop")) == (409, "deployment_has_alias")
    assert client.post(f"/api/v1/deployments/{stopped}/stop?force=true").json()["status"] == "stopping"
    routes = {route["name"]: route for route in client.get("/api/v1/routes").json()["items"]}
    assert [target["deployment_id"] for target in routes["prod"]["targets"]] == [kept]


def test_an_alias_without_deployments_returns_503_with_the_reason(client: TestClient) -> None:
    deployment = insert_row(name="a")
    put_alias(client, a=1)
    client.post(f"/api/v1/deployments/{deployment}/stop?force=true")
    body = {"model": "prod", "messages": [{"role": "user", "content": "hello"}]}
    response = client.post("/v1/chat/completions", json=body)
    assert code_of(response) == (503, "engine_unavailable")
    assert "move it" in response.json()["error"]["message"]


def test_a_job_cannot_deploy_under_the_name_of_an_alias(client: TestClient) -> None:
    insert_row(name="a")
    put_alias(client, a=1)
    deploy = {"stage": "deploy", "model": "org/base", "deployment": "prod"}
    refused = client.post("/api/v1/jobs", json={"name": "job", "stages": [deploy]})
    assert refused.status_code == 422
    assert refused.json()["error"]["fields"][0]["field"] == "stages.0.deployment"


def give(deployment: str, share: float) -> None:
    with transaction() as session:
        give_share(session, "prod", deployment, share, None)


def test_shares_that_are_given_at_the_same_time_are_all_kept(client: TestClient) -> None:
    for name in "abc":
        insert_row(name=name)
    put_alias(client, a=1)
    with ThreadPoolExecutor(1) as pool, transaction() as session:
        give_share(session, "prod", "b", 0.1, None)
        second = pool.submit(give, "c", 0.5)
        with pytest.raises(TimeoutError):
            second.result(0.3)
        session.commit()
        second.result()
    assert get_shares(client) == pytest.approx({"a": 0.45, "b": 0.05, "c": 0.5})
