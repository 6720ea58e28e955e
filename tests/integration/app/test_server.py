"""`python -m app` as a separate process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from app.__main__ import main
from app.http.processes.server import DRAIN_SECONDS
from app.settings import get_settings
from tests.services import Relay, postgres_url

REPOSITORY = Path(__file__).parents[3]
# Programs start in seconds on a host with other work; only one that hangs takes this long.
SECONDS = 120


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "TUNESMITH_DATA_DIR": str(folder),
        "PYTHONPATH": str(REPOSITORY),
        "TUNESMITH_PORT": "0",
    }


def run(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return run_module(folder, "app", *arguments, **variables)


def run_module(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command,
        env=environment(folder) | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start the service on a free port; yield its process and the address that it printed."""
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "app", *arguments]
        server = subprocess.Popen(
            command, env=environment(folder), cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert server.stdout is not None
        found = re.search(r"http://\S+(?=/docs)", server.stdout.readline())
        assert found is not None, (folder / "log").read_text()
        try:
            yield server, found[0]
        finally:
            server.kill()
            server.wait()
            server.stdout.close()


def test_a_public_address_is_refused_until_a_key_exists(tmp_path: Path) -> None:
    refused = run(tmp_path, "--host", "0.0.0.0", "--no-worker")
    assert refused.returncode == 1
    assert "python -m app keys create" in refused.stderr and "Traceback" not in refused.stderr
    run(tmp_path, "keys", "create", "--name", "me", "--scope", "admin")
    with serving(tmp_path, "--host", "0.0.0.0", "--no-worker") as (_, url):
        assert url.startswith("http://0.0.0.0:")


def test_a_service_starts_with_the_admin_key_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"ts_{'k' * 40}"
    (tmp_path / "key").write_text(f"{key}\n")
    monkeypatch.setenv("TUNESMITH_FIRST_ADMIN_KEY_FILE", str(tmp_path / "key"))
    with serving(tmp_path, "--host", "0.0.0.0", "--no-worker") as (_, url):
        local = url.replace("0.0.0.0", "127.0.0.1")
        with httpx2.Client(base_url=local, timeout=SECONDS) as client:
            assert client.get("/api/v1/keys").status_code == 401
            listed = client.get("/api/v1/keys", headers={"Authorization": f"Bearer {key}"})
    assert [each["scopes"] for each in listed.json()["items"]] == [["admin"]]
    assert key not in (tmp_path / "log").read_text()


def test_keys_are_created_listed_and_revoked_on_the_command_line(tmp_path: Path) -> None:
    created = run(tmp_path, "keys", "create", "--name", "me", "--scope", "read", "--scope", "write")
    secret = created.stdout.strip()
    listed = run(tmp_path, "keys", "list").stdout
    assert secret.startswith("ts_") and secret not in listed and "read, write" in listed
    assert run(tmp_path, "keys", "revoke", listed.split()[0]).returncode == 0
    assert "revoked" in run(tmp_path, "keys", "list").stdout


def test_a_signal_ends_the_service_while_a_client_is_connected(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--no-worker") as (server, url),
        httpx2.Client(base_url=url, timeout=SECONDS) as client,
    ):
        wait_for(lambda: client.get("/readyz").json()["ready"])
        server.send_signal(signal.SIGTERM)
        # A service that waited for the connection would end only then.
        assert server.wait(DRAIN_SECONDS - 1) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(lines[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATA_DIR", "/dev/null/none"),
        ("DATABASE_URL", "nonsense:hunter2"),
        ("DATABASE_URL", "mysql://me:hunter2@host/none"),
        ("PORT", "hunter2"),
    ],
)
def test_an_unusable_setting_is_reported_in_a_sentence(tmp_path: Path, name: str, value: str) -> None:
    refused = run(tmp_path, "--no-worker", **{f"TUNESMITH_{name}": value})
    assert refused.returncode == 1 and name in refused.stderr.upper()
    assert "Traceback" not in refused.stderr and "hunter2" not in refused.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE_SECONDS", "1"),
        ("MODEL_ROOTS", "hunter2"),
        ("LOG_LEVEL", "loud"),
        ("MLFLOW_URI", "http://me:hunter2@127.0.0.1:5000"),
        ("WANDB_MODE", "hunter2"),
    ],
)
def test_an_invalid_setting_is_reported_without_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"TUNESMITH_{name}", value)
    get_settings.cache_clear()
    with pytest.raises(SystemExit) as refused:
        main(["--no-worker"])
    get_settings.cache_clear()
    assert name in str(refused.value).upper() and "hunter2" not in str(refused.value)


def test_a_command_reports_an_unreachable_database_in_a_sentence(tmp_path: Path) -> None:
    refused = run(tmp_path, "migrate", TUNESMITH_DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/none")
    assert refused.returncode == 1 and "cannot be reached" in refused.stderr
    assert "Traceback" not in refused.stderr and "hunter2" not in refused.stderr


def test_a_store_without_its_package_is_refused_with_the_command_that_installs_it(tmp_path: Path) -> None:
    for module in (["app", "--no-worker"], ["workers", "--queue", "cpu"]):
        refused = run_module(tmp_path, *module, TUNESMITH_ARTIFACTS_URL="gs://bucket/artifacts")
        assert refused.returncode == 1 and "Traceback" not in refused.stderr
        assert "pip install 'gcsfs'" in refused.stderr


def test_the_service_starts_without_its_database_and_serves_once_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres_url() as elsewhere, Relay(urlsplit(elsewhere).port or 0) as relay:
        url = elsewhere.replace(f":{urlsplit(elsewhere).port}", f":{relay.port}")
        monkeypatch.setenv("TUNESMITH_DATABASE_URL", url)
        with (
            serving(tmp_path, "--no-worker") as (_, address),
            httpx2.Client(base_url=address, timeout=SECONDS) as client,
        ):
            assert client.get("/readyz").status_code == 503
            # A check that takes seconds is reported as such, and repeated.
            wait_for(lambda: client.get("/readyz").json()["broker"] == "ok")
            wait_for(lambda: "onnection" in client.get("/readyz").json()["database"])
            refused = client.get("/api/v1/jobs")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["error"]["code"] == "database_unavailable"
            relay.open()
            migrated = run(tmp_path, "migrate")
            assert migrated.returncode == 0, migrated.stderr
            wait_for(lambda: client.get("/readyz").status_code == 200)
            assert client.get("/api/v1/jobs").status_code == 200


def test_a_worker_waits_for_its_database_and_a_signal_ends_the_wait(tmp_path: Path) -> None:
    variables = {"TUNESMITH_DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:1/none"}
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "workers", "--queue", "cpu"]
        worker = subprocess.Popen(
            command, env=environment(tmp_path) | variables, cwd=tmp_path, stdout=log, stderr=log
        )
    wait_for(lambda: "waiting until it is available" in (tmp_path / "log").read_text())
    assert worker.poll() is None
    worker.terminate()
    assert worker.wait(SECONDS) == -signal.SIGTERM
    assert "hunter2" not in (tmp_path / "log").read_text()


def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, url), httpx2.Client(base_url=url, timeout=SECONDS) as client:
        wait_for(lambda: psutil.Process(server.pid).children() != [])
        (worker,) = psutil.Process(server.pid).children()
        worker.kill()
        wait_for(lambda: worker not in psutil.Process(server.pid).children() != [])
        assert (
            "worker process: 1 failure, the last one: WorkerExited"
            in client.get("/readyz").json()["background"]
        )
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0


def test_a_signal_also_ends_the_creation_of_the_examples(tmp_path: Path) -> None:
    with serving(tmp_path, "--no-worker", "--with-examples") as (server, url):
        wait_for(lambda: psutil.Process(server.pid).children() != [])
        children = psutil.Process(server.pid).children()
        examples = httpx2.get(f"{url}/readyz", timeout=SECONDS).json()["examples"]
        assert "training the model starter" in examples
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0
        assert not children[0].is_running() and not list(tmp_path.rglob("starter-progress*"))
        assert not list(tmp_path.rglob("starter/config.json")), "it waited for the training"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
