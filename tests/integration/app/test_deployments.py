"""Deployments: ownership of a name, shared engines, and sleeping and waking."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlmodel import Session
from starlette.testclient import TestClient

from app.deployments import lifecycle
from app.deployments.create import build_deployment, insert_deployment
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Deployment, DeploymentStatus, Model, ModelKind, Worker
from trainers.configs import DeploymentChoice, EngineKind, Queue

MakeWorker = Callable[..., Worker]
EARLIER = datetime.now(UTC) - timedelta(minutes=1)


def build_row(name: str = "one", **values: Any) -> Deployment:
    fields = {"base": "hub/base", "engine": EngineKind.hf, "queue": Queue.cpu, "engine_key": "key", **values}
    return Deployment(name=name, **fields)


def insert_row(**values: Any) -> str:
    """Insert a deployment, by default a ready one; return its id."""
    fields = {
        "status": DeploymentStatus.ready,
        "address": "http://127.0.0.1:9",
        "ready_at": EARLIER,
        **values,
    }
    with transaction() as session:
        deployment = build_row(**fields)
        session.add(deployment)
    return deployment.id


def request(**values: Any) -> str:
    with transaction() as session:
        return insert_deployment(session, build_row(**values)).id


def row(deployment_id: str) -> Deployment:
    with read_session() as session:
        return session.get_one(Deployment, deployment_id)


def serve(deployment_id: str, worker: Worker) -> None:
    with transaction() as session:
        claimed = lifecycle.claim(session, deployment_id, worker.id, 60)
        assert claimed is not None
        lifecycle.mark_ready(session, deployment_id, claimed.attempt, "http://127.0.0.1:9", "name")


def waiting(worker: Worker) -> list[str]:
    with read_session() as session:
        return [found.id for found in lifecycle.list_claimable(session, worker.id, [Queue.cpu])]


def test_the_old_deployment_serves_until_the_new_one_is_ready(make_worker: MakeWorker) -> None:
    old = insert_row()
    new = request()
    assert (row(old).status, row(new).replaces) == (DeploymentStatus.ready, old)
    serve(new, make_worker())
    assert (row(old).status, row(new).status) == (DeploymentStatus.stopping, DeploymentStatus.ready)
    assert row(new).replaces is None


def test_only_the_last_of_several_requests_takes_over_the_name(settings: Settings) -> None:
    old = insert_row()
    first, second = request(), request()
    assert [row(one).status for one in (old, first, second)] == ["ready", "stopped", "queued"]
    never_ready = request(name="two")
    assert row(request(name="two")).replaces is None
    assert row(never_ready).status is DeploymentStatus.stopped


def test_on_a_gpu_the_old_deployment_stops_first_unless_both_share_its_engine(settings: Settings) -> None:
    old = insert_row(queue=Queue.cuda)
    assert row(request(queue=Queue.cuda)).replaces == old
    request(queue=Queue.cuda, engine_key="other")
    assert row(old).status is DeploymentStatus.stopping


def test_a_worker_that_has_the_base_in_memory_has_precedence_for_a_while(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "PRECEDENCE_SECONDS", 45.0)
    host, other = make_worker(), make_worker()
    serve(request(), host)
    second = request(name="two")
    assert (waiting(host), waiting(other)) == ([second], [])
    with transaction() as session:
        assert lifecycle.claim(session, second, other.id, 60) is None
        session.get_one(Deployment, second).queued_at = EARLIER
    assert waiting(other) == [second]


def test_a_sleeping_deployment_is_woken_once_and_stopped_at_once(settings: Settings) -> None:
    sleeper = insert_row(status=DeploymentStatus.asleep, address=None)
    with transaction() as session:
        assert lifecycle.wake(session, sleeper) is not None
        assert lifecycle.wake(session, sleeper) is None
    other = insert_row(name="two", status=DeploymentStatus.asleep, address=None)
    with transaction() as session:
        lifecycle.stop(session, other)
    assert [row(one).status for one in (sleeper, other)] == ["queued", "stopped"]


def test_a_request_to_a_sleeping_deployment_wakes_it_and_gets_a_retry_after(
    client: TestClient, settings: Settings
) -> None:
    settings.wake_timeout_seconds = 0.1
    sleeper = insert_row(status=DeploymentStatus.asleep, address=None)
    body = {"model": "one", "messages": [{"role": "user", "content": "hello"}]}
    response = client.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert row(sleeper).status is DeploymentStatus.queued


def test_a_gateway_reads_routes_wakes_and_records_use_with_the_scope_inference(client: TestClient) -> None:
    sleeper = insert_row(status=DeploymentStatus.asleep, address=None)
    admin = client.post(
        "/api/v1/keys", json={"name": "admin", "scopes": ["admin"], "lock_service": True}
    ).json()["key"]
    as_admin = {"Authorization": f"Bearer {admin}"}
    keys = {
        scope: client.post("/api/v1/keys", json={"name": scope, "scopes": [scope]}, headers=as_admin).json()[
            "key"
        ]
        for scope in ("inference", "write")
    }
    client.headers["Authorization"] = f"Bearer {keys['inference']}"
    (route,) = client.get("/api/v1/routes").json()["items"]
    assert (route["name"], route["targets"][0]["base_url"]) == ("one", "")
    assert client.post("/api/v1/routes/use", json={"deployment_ids": [sleeper, "x"]}).status_code == 204
    assert client.post(f"/api/v1/deployments/{sleeper}/wake").json()["status"] == "queued"
    assert row(sleeper).last_used_at is not None
    assert client.post(f"/api/v1/deployments/{sleeper}/stop").status_code == 403
    client.headers["Authorization"] = f"Bearer {keys['write']}"
    assert client.get("/api/v1/routes").status_code == 403


def test_the_gateway_does_not_forward_administrative_paths_of_engines(client: TestClient) -> None:
    insert_row()
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/../v1/load_lora_adapter"):
        response = client.post(path, json={"model": "one", "lora_name": "x", "lora_path": "/etc"})
        assert response.status_code == 404


def keys_of(session: Session, engine: EngineKind) -> set[str]:
    choice = DeploymentChoice(engine=engine)
    models = [
        Model(name=name, kind=ModelKind.adapter, base="hub/base", artifact="", sha256="", size_bytes=0)
        for name in ("a", "b")
    ]
    for model in models:
        model.template_sha256 = model.name * 64
    session.add_all(models)
    session.flush()
    return {build_deployment(session, "one", model.id, choice, Queue.cpu).engine_key for model in models}


def test_models_with_other_templates_share_an_engine_unless_it_has_one_template(settings: Settings) -> None:
    with transaction() as session:
        assert len(keys_of(session, EngineKind.hf)) == 1
        assert len(keys_of(session, EngineKind.vllm)) == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "8.8.8.8", "2606:4700::1111"])
def test_engines_do_not_listen_on_public_addresses(host: str) -> None:
    with pytest.raises(ValidationError, match="private address"):
        Settings(engine_host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.7", "fd00::7", "100.64.1.2", "worker-1"])
def test_engines_listen_on_private_networks(host: str) -> None:
    assert Settings(engine_host=host).engine_host == host


def test_a_deployment_whose_lease_has_ended_is_not_called_ready(
    client: TestClient, make_worker: MakeWorker
) -> None:
    """The worker is gone with its host, and no sweep has released the deployment yet."""
    lapsed = insert_row(worker_id=make_worker().id, lease_expires_at=EARLIER, queued_at=EARLIER)
    alive = insert_row(
        name="two", worker_id=make_worker().id, lease_expires_at=datetime.now(UTC) + timedelta(minutes=1)
    )
    stopping = insert_row(name="three", status=DeploymentStatus.stopping, lease_expires_at=EARLIER)
    shown = {one["id"]: one for one in client.get("/api/v1/deployments").json()["items"]}
    assert [shown[one]["status"] for one in (lapsed, alive, stopping)] == ["queued", "ready", "stopped"]
    assert (shown[lapsed]["address"], shown[lapsed]["worker_id"]) == (None, None)
    assert client.get(f"/api/v1/deployments/{lapsed}").json()["status"] == "queued"
    for status, expected in (("ready", [alive]), ("queued", [lapsed]), ("stopped", [stopping])):
        items = client.get("/api/v1/deployments", params={"status": status}).json()["items"]
        assert [one["id"] for one in items] == expected
    routes = {one["name"]: one["targets"] for one in client.get("/api/v1/routes").json()["items"]}
    assert [routes[name][0]["base_url"] for name in ("one", "two")] == ["", "http://127.0.0.1:9"]


def test_a_claim_renews_the_status_that_its_transaction_has_read(make_worker: MakeWorker) -> None:
    worker = make_worker()
    lapsed = insert_row(worker_id=worker.id, lease_expires_at=EARLIER)
    with transaction() as session:
        assert session.get_one(Deployment, lapsed).current_status == "queued"
        lifecycle.release_expired(session)
        lifecycle.claim(session, lapsed, worker.id, 60)
        assert session.get_one(Deployment, lapsed).current_status == "starting"
