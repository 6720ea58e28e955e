"""Deployments on one worker: threads, leases and processes from claim to end.

Each test waits for the row that a user would see, and counts the processes of the engines.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col

from app.deployments import lifecycle
from app.deployments.waiting import explain_unclaimed
from app.storage.database import read_session, transaction
from app.tables import Deployment, DeploymentStatus
from app.workers.gpus import Gpu
from tests.integration.workers.engines.conftest import (
    StandIn,
    deploy,
    load,
    stop,
    wait_for_status,
    wait_until,
)
from trainers.configs import Queue
from workers.engines.deployment_manager import DeploymentManager
from workers.hosts.devices import DevicePool
from workers.hosts.worker import WorkerContext

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

RegisterAdapter = Callable[..., str]
READY = DeploymentStatus.ready


def restart_reason(manager: DeploymentManager) -> str:
    (engine,) = manager.engines.values()
    assert engine.last_error is not None
    return engine.last_error.message


def test_a_deployment_becomes_ready_after_a_chat(
    manager: DeploymentManager, stand_in: StandIn, base: str
) -> None:
    row = wait_for_status(deploy("one", base), READY)
    (probe,) = stand_in.requests()
    assert (probe["path"], probe["max_tokens"]) == ("/v1/chat/completions", 1)
    assert row.address and row.upstream_model == probe["model"]
    assert len(stand_in.running()) == 1


def test_a_model_without_a_template_becomes_ready_after_a_text(
    manager: DeploymentManager, stand_in: StandIn, base: str
) -> None:
    stand_in.ask("no-template")
    wait_for_status(deploy("one", base), READY)
    assert [probe["path"] for probe in stand_in.requests()] == ["/v1/chat/completions", "/v1/completions"]


def test_a_deployment_shows_that_the_hub_is_unreachable_while_it_waits_for_it(
    manager: DeploymentManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    one = deploy("one", "org/name")
    wait_until(lambda: load(one).error is not None)
    row = load(one)
    assert row.status is DeploymentStatus.starting and row.error is not None
    assert row.error["code"] == "hub_unreachable" and "Connection refused" in row.error["message"]


def test_an_embedding_engine_is_probed_by_embeddings_and_shared_with_no_other_task(
    worker: WorkerContext, manager: DeploymentManager, stand_in: StandIn, base: str
) -> None:
    worker.settings.probe_seconds = 0.1
    embedder, chats = deploy("embedder", base, task="embed", pooling="mean"), deploy("chats", base)
    for deployment in (embedder, chats):
        wait_for_status(deployment, READY)
    wait_until(lambda: len(stand_in.requests("/v1/embeddings")) > 2)
    assert len(stand_in.running()) == 2
    by_process = {request["process"]: request["path"] for request in stand_in.requests()}
    assert sorted(by_process.values()) == ["/v1/chat/completions", "/v1/embeddings"]


def test_embeddings_of_an_adapter_or_without_a_pooling_fail_before_an_engine_starts(
    manager: DeploymentManager, stand_in: StandIn, base: str, adapter: RegisterAdapter
) -> None:
    tuned, bare = deploy("tuned", adapter("tuned"), task="embed"), deploy("bare", base, task="embed")
    errors = [wait_for_status(one, DeploymentStatus.failed).error or {} for one in (tuned, bare)]
    assert [error["code"] for error in errors] == ["model_unsupported"] * 2
    assert "is an adapter" in errors[0]["message"] and "has no modules.json" in errors[1]["message"]
    assert stand_in.processes() == []


def test_an_engine_that_crashes_is_restarted(
    manager: DeploymentManager, stand_in: StandIn, base: str
) -> None:
    one = deploy("one", base)
    wait_for_status(one, READY)
    os.kill(stand_in.running()[0], signal.SIGKILL)
    wait_until(lambda: load(one).restart_count == 1 and load(one).status is READY)
    assert "exited" in restart_reason(manager)
    assert len(stand_in.processes()) == 2 and len(stand_in.running()) == 1


def test_an_engine_that_does_not_start_fails_its_deployment_with_the_end_of_its_log(
    manager: DeploymentManager, stand_in: StandIn, base: str
) -> None:
    stand_in.ask("exit-at-start")
    row = wait_for_status(deploy("one", base), DeploymentStatus.failed)
    assert row.error and row.error["code"] == "deployment_failed"
    assert "status 7" in row.error["message"] and "asked to exit at once" in row.error["message"]


def test_chats_that_begin_to_hang_restart_the_engine_and_fail_their_deployment_alone(
    worker: WorkerContext, manager: DeploymentManager, stand_in: StandIn, adapter: RegisterAdapter
) -> None:
    # The other one must respond within this time, on a busy machine too.
    worker.settings.probe_seconds, worker.settings.probe_timeout_seconds = 0.3, 1.5
    good, bad = deploy("good", adapter("good")), deploy("bad", adapter("bad"))
    for deployment in (good, bad):
        wait_for_status(deployment, READY)
    (first,) = stand_in.running()
    stand_in.ask("hang", "bad")
    row = wait_for_status(bad, DeploymentStatus.failed)
    assert row.error and "does not serve the model" in row.error["message"]
    wait_until(lambda: load(good).restart_count == 1 and load(good).status is READY)
    assert "3 requests to bad" in restart_reason(manager)
    assert first not in stand_in.running() and len(stand_in.running()) == 1


def test_a_model_whose_chats_hang_from_the_start_never_becomes_ready(
    worker: WorkerContext, manager: DeploymentManager, stand_in: StandIn, base: str
) -> None:
    worker.settings.probe_timeout_seconds = 0.3
    stand_in.ask("hang")
    row = wait_for_status(deploy("one", base), DeploymentStatus.failed)
    assert row.ready_at is None
    assert row.error and "no response" in row.error["message"]
    wait_until(lambda: stand_in.running() == [])


def test_a_template_that_cannot_be_used_fails_its_deployment_before_an_engine_starts(
    manager: DeploymentManager, stand_in: StandIn, adapter: RegisterAdapter
) -> None:
    row = wait_for_status(
        deploy("one", adapter("one", "{{ ''.__class__.__mro__ }}")), DeploymentStatus.failed
    )
    assert row.error and row.error["code"] == "template_unsafe"
    assert stand_in.processes() == []


def test_a_lost_lease_ends_the_engine_and_leaves_the_row_to_its_new_owner(
    manager: DeploymentManager, stand_in: StandIn, base: str
) -> None:
    one = deploy("one", base)
    attempt = wait_for_status(one, READY).attempt
    with transaction() as session:
        taken = {"attempt": attempt + 1, "worker_id": None}
        session.execute(update(Deployment).where(col(Deployment.id) == one).values(**taken))
    wait_until(lambda: stand_in.running() == [])
    row = load(one)
    assert (row.status, row.attempt, row.error) == (READY, attempt + 1, None)
    wait_until(lambda: not manager.runners)


def test_a_deployment_that_is_stopped_while_it_starts_leaves_no_process(
    manager: DeploymentManager, stand_in: StandIn, base: str
) -> None:
    stand_in.ask("unhealthy")
    one = deploy("one", base)
    wait_until(lambda: stand_in.running())
    assert load(one).status is DeploymentStatus.starting
    stop(one)
    wait_for_status(one, DeploymentStatus.stopped)
    wait_until(lambda: stand_in.running() == [])


def test_an_idle_deployment_sleeps_without_a_process_and_wakes(
    manager: DeploymentManager, stand_in: StandIn, base: str
) -> None:
    one = deploy("one", base, idle_seconds=1)
    # It is ready for a second, which a busy test may not see.
    assert wait_for_status(one, DeploymentStatus.asleep).ready_at is not None
    wait_until(lambda: stand_in.running() == [])
    with transaction() as session:
        session.get_one(Deployment, one).idle_seconds = 3600
        lifecycle.wake(session, one)
    wait_for_status(one, READY)
    assert len(stand_in.processes()) == 2 and len(stand_in.running()) == 1


def test_two_adapters_on_one_base_share_an_engine_until_both_have_left(
    manager: DeploymentManager, stand_in: StandIn, adapter: RegisterAdapter
) -> None:
    one, two = deploy("one", adapter("a")), deploy("two", adapter("b"))
    addresses = {wait_for_status(deployment, READY).address for deployment in (one, two)}
    assert len(addresses) == 1 and len(stand_in.running()) == 1
    stop(one)
    wait_for_status(one, DeploymentStatus.stopped)
    assert [request["lora_name"] for request in stand_in.requests("unload")] == [load_names(stand_in, "one")]
    assert load(two).status is READY and len(stand_in.running()) == 1
    stop(two)
    wait_for_status(two, DeploymentStatus.stopped)
    wait_until(lambda: stand_in.running() == [])
    assert len(stand_in.processes()) == 1


def load_names(stand_in: StandIn, deployment: str) -> str:
    """Return the name under which the adapter of a deployment was loaded."""
    loaded = [str(request["lora_name"]) for request in stand_in.requests("/load")]
    (name,) = [name for name in loaded if name.startswith(deployment)]
    return name


def test_the_least_recently_used_adapter_sleeps_when_another_needs_its_place(
    manager: DeploymentManager, stand_in: StandIn, adapter: RegisterAdapter
) -> None:
    options = {"max_adapters": 1}
    one = deploy("one", adapter("a"), options=options)
    wait_for_status(one, READY)
    two = deploy("two", adapter("b"), options=options)
    wait_for_status(two, READY)
    assert load(one).status is DeploymentStatus.asleep
    assert len(stand_in.processes()) == 1


def test_a_deployment_that_waits_for_a_gpu_gets_that_of_the_least_used_one_that_may_sleep(
    manager: DeploymentManager, worker: WorkerContext, tmp_path: Path
) -> None:
    gpus = [Gpu(index, f"GPU-{index}", "H200", 1) for index in range(3)]
    worker.devices = DevicePool(gpus, tmp_path / "locks")
    bases = {name: make_base(worker, name) for name in ("old", "new", "kept", "late")}

    def deploy_on_gpu(name: str, idle_seconds: float = 3600) -> str:
        return deploy(name, bases[name], idle_seconds=idle_seconds, queue=Queue.cuda)

    old, kept = deploy_on_gpu("old"), deploy_on_gpu("kept", 0)
    for one in (old, kept):
        wait_for_status(one, READY)
    new = deploy_on_gpu("new")
    wait_for_status(new, READY)
    late = deploy_on_gpu("late")
    with read_session() as session:
        assert "GPUs are in use by deployment 'old'" in explain_unclaimed(session, load(late))
    worker.settings.evict_idle_seconds = 0.1
    wait_for_status(late, READY)
    assert [load(one).status for one in (old, kept, new)] == [DeploymentStatus.asleep, READY, READY]


def make_base(worker: WorkerContext, name: str) -> str:
    folder = worker.settings.model_roots[0] / name
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


def test_an_adapter_that_crashes_the_engine_twice_fails_and_the_others_return(
    manager: DeploymentManager, stand_in: StandIn, adapter: RegisterAdapter
) -> None:
    good = deploy("good", adapter("a"))
    wait_for_status(good, READY)
    stand_in.ask("crash", "bad")
    bad = deploy("bad", adapter("b"))
    row = wait_for_status(bad, DeploymentStatus.failed)
    assert row.error and "crashed 2 times while it loaded" in row.error["message"]
    # Its row may still show the engine that has crashed.
    wait_until(lambda: len(stand_in.processes()) == 3)
    wait_for_status(good, READY)
    assert len(stand_in.processes()) == 3 and len(stand_in.running()) == 1


def test_a_worker_that_stops_queues_its_deployments_again(
    worker: WorkerContext, manager: DeploymentManager, stand_in: StandIn, adapter: RegisterAdapter
) -> None:
    ids = [deploy(name, adapter(name)) for name in ("one", "two")]
    for deployment in ids:
        wait_for_status(deployment, READY)
    worker.stopping.set()
    for deployment in ids:
        assert wait_for_status(deployment, DeploymentStatus.queued).worker_id is None
    wait_until(lambda: stand_in.running() == [])


def test_a_failed_engine_keeps_its_log_and_a_stopped_one_leaves_no_folder(
    worker: WorkerContext, manager: DeploymentManager, stand_in: StandIn, base: str
) -> None:
    engines = Path(worker.settings.data_dir) / "engines"
    one = deploy("one", base)
    wait_for_status(one, READY)
    stop(one)
    wait_for_status(one, DeploymentStatus.stopped)
    wait_until(lambda: list(engines.iterdir()) == [])
    stand_in.ask("exit-at-start")
    wait_for_status(deploy("two", base), DeploymentStatus.failed)
    (folder,) = engines.iterdir()
    assert "asked to exit at once" in (folder / "log.txt").read_text()


def test_an_engine_outlives_a_database_that_is_away_for_less_than_its_lease(
    worker: WorkerContext, manager: DeploymentManager, stand_in: StandIn, base: str
) -> None:
    one = deploy("one", base)
    wait_for_status(one, READY)
    lease_ends_at = load(one).lease_expires_at
    assert lease_ends_at is not None
    with transaction() as session:  # Other writers wait for this transaction.
        session.execute(update(Deployment).where(col(Deployment.id) == one).values(idle_seconds=0))
        time.sleep(5 * worker.settings.heartbeat_seconds)
    wait_until(lambda: load(one).lease_expires_at > lease_ends_at)  # type: ignore[operator]
    assert load(one).status is READY and len(stand_in.processes()) == 1
