"""Hosts are requested, shown and terminated as rows; nothing here calls a cloud."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import Session, select
from starlette.testclient import TestClient

from app.hosts.offers import capability_of
from app.hosts.schemas import HostCreate
from app.hosts.service import TooManyHosts, create_host, read_now
from app.scheduling.incidents import Incident
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import CloudState, Host, HostStatus, Scope, Worker
from trainers.configs.clouds.offers import CloudName, Offer, PriceSource
from workers.clouds.clients import open_cloud
from workers.clouds.protocol import CloudError

URL = "/api/v1/hosts"
BODY = {"cloud": "lambda", "type": "gpu_1x_a10", "max_usd": 5.0}
PRICES = {"gpu_1x_a10": 0.75, "gpu_8x_h100": 23.92}
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def make_offer(name: str, region: str, *, has_capacity: bool | None = None, spot: bool = False) -> Offer:
    return Offer(
        cloud=CloudName.lambda_cloud,
        type=name,
        region=region,
        spot=spot,
        gpu_count=int(name[4]),
        usd_per_hour=PRICES[name],
        price_source=PriceSource.table,
        price_date="2026-11-01T00:00:00Z",
        has_capacity=has_capacity,
    )


@pytest.fixture
def admin(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Return a client with a key of the scope `admin`, to which `/readyz` responds however long it takes."""
    monkeypatch.setattr("app.http.health.LIMIT_SECONDS", 60.0)
    body = {"name": "me", "scopes": ["admin"], "lock_service": True}
    client.headers["Authorization"] = f"Bearer {client.post('/api/v1/keys', json=body).json()['key']}"
    return client


@pytest.fixture
def cloud(make_worker: Callable[..., Any]) -> CloudState:
    """Return a cloud whose keys a worker holds, with the offers that it has read."""
    worker = make_worker(capabilities=[capability_of(CloudName.lambda_cloud)])
    offers = [
        make_offer("gpu_1x_a10", "us-east-1", has_capacity=False),
        make_offer("gpu_1x_a10", "us-west-1", has_capacity=True),
        make_offer("gpu_8x_h100", "us-west-1"),
    ]
    with transaction() as session:
        now = read_now(session)
        state = CloudState(
            name=CloudName.lambda_cloud,
            worker_id=worker.id,
            lease_expires_at=now + timedelta(hours=1),
            offers=[offer.model_dump(mode="json") for offer in offers],
            offers_at=now,
        )
        session.add(state)
    return state


def write(host_id: str, **values: Any) -> None:
    with transaction() as session:
        host = session.get_one(Host, host_id)
        for name, value in values.items():
            setattr(host, name, value)


def test_a_host_is_requested_where_the_cloud_has_capacity(admin: TestClient, cloud: CloudState) -> None:
    response = admin.post(URL, json=BODY)
    assert response.status_code == 201
    host = response.json()
    assert (host["status"], host["region"], host["gpu_count"]) == ("launching", "us-west-1", 1)
    assert (host["usd_per_hour"], host["spend_usd"], host["idle_seconds"]) == (0.75, 0, 900)
    assert admin.get(URL).json()["items"] == [admin.get(f"{URL}/{host['id']}").json()]


def test_a_host_without_a_type_and_a_region_is_that_of_the_workers_variables(
    admin: TestClient, cloud: CloudState
) -> None:
    body = {"cloud": "lambda", "max_usd": 50.0}
    unnamed = admin.post(URL, json=body)
    here, home = make_offer("gpu_8x_h100", "us-east-1"), make_offer("gpu_8x_h100", "us-west-1")
    home = home.model_copy(update={"is_default": True, "is_home": True})
    offers = [here.model_copy(update={"is_default": True}), home, make_offer("gpu_1x_a10", "us-west-1")]
    with transaction() as session:
        state = session.get_one(CloudState, CloudName.lambda_cloud)
        state.offers = [offer.model_dump(mode="json") for offer in offers]
    host = admin.post(URL, json=body).json()
    assert unnamed.status_code == 422
    assert "LAMBDA_INSTANCE_TYPE" in unnamed.json()["error"]["message"]
    assert (host["type"], host["region"]) == ("gpu_8x_h100", "us-west-1")


def test_a_repeated_request_launches_one_host(admin: TestClient, cloud: CloudState) -> None:
    headers = {"Idempotency-Key": "one"}
    ids = {admin.post(URL, json=BODY, headers=headers).json()["id"] for _ in range(2)}
    other = admin.post(URL, json=BODY | {"max_usd": 6.0}, headers=headers)
    with read_session() as session:
        assert [host.id for host in session.scalars(select(Host))] == list(ids)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


@on_sqlite
@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"type": "p5.48xlarge"}, "type", "It offers gpu_1x_a10, gpu_8x_h100"),
        ({"type": "gpu_8x_h100"}, "max_usd", "One hour of gpu_8x_h100 costs 23.92"),
        ({"region": "eu-west-1"}, "region", "in us-east-1, us-west-1, not in eu-west-1"),
        ({"spot": True}, "type", "offers no spot type now"),
        ({"idle_seconds": 1.0}, "idle_seconds", "greater than or equal to 60"),
        ({"type": "x; rm -rf /"}, "type", "match pattern"),
    ],
)
def test_what_cannot_be_launched_is_refused_by_field(
    admin: TestClient, cloud: CloudState, change: dict[str, Any], field: str, said: str
) -> None:
    response = admin.post(URL, json=BODY | change)
    assert response.status_code == 422
    found = response.json()["error"]["fields"][0]
    assert found["field"].endswith(field) and said in found["message"]


@on_sqlite
def test_a_cloud_without_keys_is_refused_with_the_variables_to_set(
    admin: TestClient, cloud: CloudState
) -> None:
    response = admin.post(URL, json=BODY | {"cloud": "aws"})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "cloud_unattended")
    assert "AWS_ACCESS_KEY_ID" in response.json()["error"]["hint"]


@on_sqlite
def test_what_keeps_a_worker_from_launching_is_in_the_response(
    admin: TestClient, cloud: CloudState, settings: Settings
) -> None:
    with pytest.raises(CloudError) as raised:
        open_cloud(CloudName.lambda_cloud, settings, {})
    with transaction() as session:
        session.get_one(CloudState, CloudName.lambda_cloud).offers_at = None
    assert "Repeat the request" in admin.post(URL, json=BODY).json()["error"]["hint"]
    incident = Incident("keeper of lambda")
    incident.record(raised.value)
    with transaction() as session:
        session.execute(update(Worker).values(problems=[incident.describe()]))
    incident.forget()
    error = admin.post(URL, json=BODY).json()["error"]
    assert "TUNESMITH_CLOUD_REQUIREMENT is not set" in error["message"]
    assert "this version (0.1.0)" in error["message"] and "pip wheel --no-deps ." in error["message"]


@on_sqlite
def test_a_service_without_keys_launches_nothing_because_the_hosts_key_would_lock_it(
    client: TestClient, cloud: CloudState
) -> None:
    response = client.post(URL, json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "hosts_need_keys")


@on_sqlite
def test_launching_and_terminating_need_the_scope_admin(admin: TestClient, cloud: CloudState) -> None:
    host_id = admin.post(URL, json=BODY).json()["id"]
    key = admin.post("/api/v1/keys", json={"name": "w", "scopes": [Scope.read, Scope.write]}).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    assert admin.post(URL, json=BODY, headers=headers).status_code == 403
    assert admin.delete(f"{URL}/{host_id}", headers=headers).status_code == 403
    assert admin.get(f"{URL}/offers", headers=headers).json()["clouds"][0]["attended"] is True


@on_sqlite
def test_no_more_hosts_exist_than_the_settings_allow(
    admin: TestClient, cloud: CloudState, settings: Settings
) -> None:
    settings.max_hosts = 1
    first = admin.post(URL, json=BODY).json()["id"]
    refused = admin.post(URL, json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "too_many_hosts")
    write(first, status=HostStatus.terminated)
    assert admin.post(URL, json=BODY).status_code == 201


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_simultaneous_requests_launch_no_more_hosts_than_the_settings_allow(
    admin: TestClient, cloud: CloudState, settings: Settings
) -> None:
    settings.max_hosts = 1
    body = HostCreate.model_validate(BODY)
    met = Barrier(2)

    def meet(session: Session, host_id: str) -> None:
        # Without a lock, both requests have counted the hosts before one commits.
        with suppress(BrokenBarrierError):
            met.wait(0.5)

    def post(_: int) -> int:
        try:
            create_host(settings, body, "", meet)
        except TooManyHosts:
            return 0
        return 1

    with ThreadPoolExecutor(max_workers=2) as pool:
        assert sum(pool.map(post, range(2))) == 1


def test_a_ready_host_saves_before_its_end_and_others_end_at_once(
    admin: TestClient, cloud: CloudState
) -> None:
    ready, launching = (admin.post(URL, json=BODY).json()["id"] for _ in range(2))
    write(ready, status=HostStatus.ready)
    for host_id, status in ((ready, "stopping"), (launching, "terminating")):
        for _ in range(2):
            response = admin.delete(f"{URL}/{host_id}")
            assert response.status_code == 202
            assert (response.json()["status"], response.json()["stop_reason"]) == (status, "requested")
    assert admin.delete(f"{URL}/host_{'0' * 26}").json()["error"]["code"] == "host_not_found"


def test_the_metrics_contain_hosts_and_spend(admin: TestClient, cloud: CloudState) -> None:
    ended, running = (admin.post(URL, json=BODY).json()["id"] for _ in range(2))
    write(ended, status=HostStatus.terminated, spend_usd=2.5)
    with read_session() as session:
        hour_ago = read_now(session) - timedelta(minutes=59, seconds=30)
    write(running, status=HostStatus.ready, launched_at=hour_ago, attempted_at=hour_ago)
    lines = admin.get("/metrics").text.splitlines()
    assert 'tunesmith_hosts{cloud="lambda",status="ready"} 1.0' in lines
    assert 'tunesmith_host_spend_usd{cloud="lambda"} 3.25' in lines
    assert 'tunesmith_host_usd_per_hour{cloud="lambda"} 0.75' in lines
    assert 'tunesmith_cloud_attended{cloud="lambda"} 1.0' in lines


def add_host(status: HostStatus, **values: Any) -> str:
    """Insert a host with a machine."""
    with transaction() as session:
        defaults: dict[str, Any] = {
            "cloud": CloudName.lambda_cloud, "type": "gpu_1x_a10", "region": "us-west-1", "machine_id": "m1",
            "usd_per_hour": 0.75, "max_usd": 5.0, "idle_seconds": 900.0, "launched_at": read_now(session),
        }  # fmt: skip
        host = Host(**(defaults | values), status=status)
        session.add(host)
        session.flush()
    return host.id


UNREACHED = {"code": "host_out_of_reach", "message": "its machine is elsewhere", "hint": "Settle it."}


@on_sqlite
def test_an_overdue_termination_is_reported_as_soon_as_it_is_one(
    admin: TestClient, cloud: CloudState, settings: Settings
) -> None:
    with read_session() as session:
        late = read_now(session) - timedelta(seconds=settings.host_overdue_seconds)
    problem = {"code": "host_unavailable", "message": "The termination is overdue", "hint": None}
    failed = {"code": "host_unavailable", "message": "no GPU", "hint": None}
    values = {"stop_at": late, "overdue_at": late, "problem": problem, "error": failed}
    host_id = add_host(HostStatus.terminating, **values)
    assert admin.get("/readyz").json()["hosts"] == f"overdue termination, billed: {host_id}"
    host = admin.get(f"{URL}/{host_id}").json()
    assert (host["error"]["message"], host["overdue_at"] is None) == ("The termination is overdue", False)
    write(host_id, status=HostStatus.failed, problem=None)
    assert admin.get(f"{URL}/{host_id}").json()["error"]["message"] == "no GPU"


@on_sqlite
def test_what_needs_a_person_is_in_readyz_and_the_metrics(admin: TestClient, cloud: CloudState) -> None:
    assert admin.get("/readyz").json()["hosts"] == "ok"
    host_id = add_host(HostStatus.ready, problem=UNREACHED)
    machine = {
        "machine_id": "m9", "name": "tunesmith-lost-host_1-1", "installation_id": "lost", "host_id": "host_1",
        "state": "running", "foreign": True,
    }  # fmt: skip
    with transaction() as session:
        state = session.get_one(CloudState, CloudName.lambda_cloud)
        state.unclaimed, state.held_at, state.lease_expires_at = [machine], read_now(session), None
    time.sleep(1.1)  # /readyz keeps what it has found for a second.
    assert admin.get("/readyz").json()["hosts"] == (
        f"out of reach of the keys of the cloud, may be billed: {host_id}; held after a restoration until "
        "they are taken over: the hosts at lambda; no live worker holds the keys of lambda: "
        f"{host_id}; machines at lambda that this installation does not end: m9"
    )
    shown = admin.get(f"{URL}/offers").json()["clouds"][0]
    assert (shown["unclaimed"], shown["held_at"] is None) == ([machine], False)
    text = admin.get("/metrics").text
    for line in ("hosts_out_of_reach", "cloud_unclaimed", "cloud_held"):
        assert f'tunesmith_{line}{{cloud="lambda"}} 1.0' in text


@on_sqlite
def test_a_host_out_of_reach_is_settled_by_a_person(admin: TestClient, cloud: CloudState) -> None:
    host_id = add_host(HostStatus.ready, problem=UNREACHED, account="old")
    other_id = add_host(HostStatus.ready, problem=UNREACHED, account="old")
    early = admin.post(f"{URL}/{host_id}/settle", json={"settlement": "same_account"})
    with transaction() as session:
        session.get_one(CloudState, CloudName.lambda_cloud).account = "new"
    same = admin.post(f"{URL}/{host_id}/settle", json={"settlement": "same_account"}).json()
    again = admin.post(f"{URL}/{host_id}/settle", json={"settlement": "machine_ended"})
    write(host_id, problem=UNREACHED)
    ended = admin.post(f"{URL}/{host_id}/settle", json={"settlement": "machine_ended"}).json()
    assert (early.status_code, again.json()["error"]["code"]) == (409, "host_in_reach")
    assert (same["account"], same["error"]) == ("new", None)
    assert admin.get(f"{URL}/{other_id}").json()["account"] == "new"
    assert (ended["status"], ended["stop_reason"], ended["spend_usd"] > 0) == (
        "terminated",
        "requested",
        True,
    )


@on_sqlite
def test_machines_are_taken_over_after_a_restoration(admin: TestClient, cloud: CloudState) -> None:
    body = {"cloud": "lambda"}
    assert admin.post(f"{URL}/take-over", json=body).json()["error"]["code"] == "cloud_not_held"
    with transaction() as session:
        state = session.get_one(CloudState, CloudName.lambda_cloud)
        state.held_at, state.gaps = read_now(session), [["", "host_z"]]
    shown = admin.post(f"{URL}/take-over", json=body)
    assert (shown.status_code, shown.json()["clouds"][0]["held_at"]) == (200, None)
    with read_session() as session:
        assert session.get_one(CloudState, CloudName.lambda_cloud).gaps == []
