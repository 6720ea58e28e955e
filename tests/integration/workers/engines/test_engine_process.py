"""The parts of an engine on a worker: its users and slots, its start, and its health."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.deployments.create import build_deployment
from app.storage.database import read_session
from serving.engines import EngineConfig, find_engine
from tests.integration.workers.engines.conftest import STAND_IN, StandIn, wait_until
from tests.services import free_port
from trainers.configs import DeploymentChoice, EngineKind, EngineOptions, Queue
from workers.engines import health
from workers.engines.engine_process import EngineProcess
from workers.engines.engine_start import (
    EngineProcessFailed,
    hold_address,
    start_engine,
    wait_until_ready,
)
from workers.engines.health import EngineHealth
from workers.hosts.devices import NO_DEVICES
from workers.hosts.guarded_process import GuardedProcess
from workers.hosts.worker import WorkerContext
from workers.inputs.models import ResolvedModel

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
ENGINE = find_engine(EngineKind.hf)


@pytest.fixture
def engine_process(worker: WorkerContext, stand_in: StandIn, base: str) -> EngineProcess:
    """Return an engine that has one user and has not been started."""
    choice = DeploymentChoice.model_validate({"engine": "hf", "options": {"max_adapters": 2}})
    with read_session() as session:
        return EngineProcess(worker, build_deployment(session, "one", base, choice, Queue.cpu), NO_DEVICES)


def test_an_engine_that_its_last_user_has_released_is_given_to_nobody(engine_process: EngineProcess) -> None:
    assert engine_process.acquire()
    engine_process.release()
    assert not engine_process.closing.is_set()
    engine_process.release()
    assert engine_process.closing.is_set() and engine_process.stopped.is_set()
    assert not engine_process.acquire()


def test_users_that_come_and_go_at_once_are_counted(engine_process: EngineProcess) -> None:
    def use(_: int) -> None:
        assert engine_process.acquire()
        engine_process.release()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(2000)))
    assert not engine_process.closing.is_set()
    engine_process.release()
    assert engine_process.stopped.is_set()


def test_adapter_slots_are_limited_and_a_name_takes_one(engine_process: EngineProcess) -> None:
    assert [engine_process.reserve_adapter_slot(name) for name in ("a", "a", "b", "c")] == [
        True,
        True,
        True,
        False,
    ]
    engine_process.release_adapter_slot("a")
    assert engine_process.reserve_adapter_slot("c")


def test_an_engine_starts_once_however_many_deployments_start_it(
    engine_process: EngineProcess, stand_in: StandIn, base: str
) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(engine_process.start, [ResolvedModel(base, None, base, None)] * 8))
    assert [thread.name for thread in threading.enumerate()].count(engine_process.base_name) == 1
    engine_process.release()
    assert engine_process.stopped.wait(60)
    assert stand_in.processes() == []  # No lease was bound to it, so no program was started.


@pytest.mark.parametrize(
    ("host", "reason"),
    [("8.8.8.8", "private address only"), ("no.such.host.invalid", "cannot be used")],
)
def test_an_engine_host_that_cannot_be_used_is_named(settings: object, host: str, reason: str) -> None:
    with pytest.raises(EngineProcessFailed, match=f"TUNESMITH_ENGINE_HOST is {host}.*({reason})"):
        hold_address(host)


@pytest.fixture
def program(stand_in: StandIn, tmp_path: Path) -> Iterator[tuple[GuardedProcess, str]]:
    """Start a stand-in; yield its process and its address."""
    port = free_port()
    engine = find_engine(EngineKind.hf, [sys.executable, str(STAND_IN), str(stand_in.folder)])
    config = EngineConfig("base", "base", "127.0.0.1", port, {}, EngineOptions())
    process = start_engine(engine, config, tmp_path / "engine", NO_DEVICES, 60)
    yield process, f"http://127.0.0.1:{port}"
    process.kill()


class Probes:
    """The health of a ready stand-in with two adapters, of which one more probe is due at each check."""

    def __init__(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("a", "b"):
            ENGINE.load_adapter(address, name, "folder")
        self._now = 0.0
        monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: self._now))
        self._health = EngineHealth(
            ENGINE, address, lambda: ["a", "b"], probe_seconds=0.5, timeout_seconds=60
        )
        self._health.check()

    def check(self) -> str | None:
        self._now += 1
        return self._health.check()


def test_a_start_that_is_cancelled_ends_before_the_engine_is_ready(
    program: tuple[GuardedProcess, str], stand_in: StandIn, tmp_path: Path
) -> None:
    stand_in.ask("unhealthy")
    process, address = program
    assert not wait_until_ready(
        ENGINE, process, address, tmp_path / "engine", lambda: bool(stand_in.running())
    )
    process.kill()
    assert stand_in.running() == []


def test_an_unknown_option_is_reported_before_a_process_starts(stand_in: StandIn, tmp_path: Path) -> None:
    class PickyEngine(type(ENGINE)):  # type: ignore[misc]
        def command(self, config: EngineConfig) -> list[str]:
            raise ValueError("no such option")

    config = EngineConfig("base", "base", "127.0.0.1", free_port())
    with pytest.raises(EngineProcessFailed, match="no such option"):
        start_engine(PickyEngine(), config, tmp_path / "engine", NO_DEVICES, 60)
    assert not (tmp_path / "engine").exists()


def test_each_model_of_an_engine_is_probed_and_one_at_a_time(
    program: tuple[GuardedProcess, str], stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wait_until_ready(ENGINE, *program, tmp_path / "engine", lambda: False)
    probes = Probes(program[1], monkeypatch)
    assert [probes.check() for _ in range(4)] == [None] * 4
    assert [probe["model"] for probe in stand_in.requests("chat")] == ["a", "b", "a", "b"]


def test_failures_count_only_in_a_row_and_per_model(
    program: tuple[GuardedProcess, str], stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wait_until_ready(ENGINE, *program, tmp_path / "engine", lambda: False)
    probes = Probes(program[1], monkeypatch)
    stand_in.ask("fail", "a")
    results = [probes.check() for _ in range(4)]  # Two failures of `a`, between which `b` works.
    stand_in.stop_asking("fail")
    results += [probes.check() for _ in range(4)]
    stand_in.ask("fail", "a")
    results += [probes.check() for _ in range(4)]
    assert results == [None] * 12
    assert "failed 3 requests to a in a row" in (probes.check() or "")


def test_an_engine_that_fails_its_health_check_for_long_is_restarted(
    program: tuple[GuardedProcess, str],
    stand_in: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, address = program
    assert wait_until_ready(ENGINE, process, address, tmp_path / "engine", lambda: False)
    monkeypatch.setattr(health, "UNHEALTHY_SECONDS", 0.3)
    monkeypatch.setattr(health, "HEALTH_CHECK_SECONDS", 0.05)
    checks = EngineHealth(ENGINE, address, lambda: ["base"], 60, 5)
    assert checks.check() is None
    stand_in.ask("unhealthy")
    wait_until(lambda: "has failed its health check" in (checks.check() or ""))
