"""A host that joins.

Goal: one command gives a host all that its worker needs; the worker runs a job with the host's own
credentials, and is cut off when the host leaves. Method: an API on PostgreSQL and Redis, whose artifacts are
in a folder that the host does not have, and the commands as processes in a folder of the host.
"""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.e2e.platform import ROOT, Platform, wait_until
from tests.integration.workers.test_tunnels import SshServer
from tests.integration.workers.test_tunnels import server as ssh_server
from tests.tls_proxy import tls_proxy
from workers.joining.env_file import read_env_file

__all__ = ["ssh_server"]

PREPARE = {"stage": "prepare", "dataset": "test", "split": {"test": 4}}


def run_command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of workers on the host, whose variables are not those of the control plane."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TUNESMITH_")}
    command = [sys.executable, "-m", "workers", *arguments, "--data-dir", str(folder)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def create_keys(team: Platform) -> Any:
    """Lock the service, and return a key of the scope `worker`."""
    admin = team.post("/keys", {"name": "admin", "scopes": ["admin"], "lock_service": True})
    team.client.headers["Authorization"] = f"Bearer {admin['key']}"
    return team.post("/keys", {"name": "gpu-1", "scopes": ["worker"]})


def test_a_host_joins_runs_a_job_with_its_own_credentials_and_is_cut_off_when_it_leaves(
    team: Platform, tmp_path: Path
) -> None:
    key, host = create_keys(team), tmp_path / "host"
    options = ["--url", team.base_url, "--key", key["key"], "--name", "gpu-1", "--no-start"]
    joined = run_command(host, "join", *options)
    assert joined.returncode == 0, joined.stdout + joined.stderr
    assert "Joined http" in joined.stdout and "ok       broker" in joined.stdout
    assert key["key"] not in joined.stdout
    env_file = host / "worker.env"
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600
    assert "tunesmith_worker_" in env_file.read_text()
    (credential,) = team.get("/worker-credentials")["items"]

    worker = start_worker(team, env_file)
    wait_until(lambda: team.find_worker(worker.pid) is not None, 120, "the worker does not join")
    assert team.wait_until_finished(team.submit(PREPARE))["status"] == "succeeded"
    wait_until(lambda: team.get("/workers")["items"][0]["host_report"] is not None, 120, "no report arrives")
    assert count_connections(team.database_url, credential["database_role"]) > 0

    left = run_command(host, "leave")
    assert left.returncode == 0, left.stdout + left.stderr
    wait_until(
        lambda: count_connections(team.database_url, credential["database_role"]) == 0,
        60,
        "it is not cut off",
    )
    assert not env_file.exists()
    log, _, _ = (team.folder / "host.log").read_text().partition("Connection to broker lost")
    assert "permission" not in log.lower().partition("terminating connection")[0]
    assert team.get("/worker-credentials")["items"][0]["ended_at"] is not None


def test_a_host_outside_the_network_joins_through_ssh(
    team: Platform, tmp_path: Path, ssh_server: SshServer
) -> None:
    key, host, address = create_keys(team), tmp_path / "host", ssh_server.address
    joined = run_command(
        host, "join", "--via", f"ssh://{address.user}@127.0.0.1:{address.port}", "--identity",
        str(ssh_server.user_key), "--url", team.base_url, "--key", key["key"], "--no-start",
    )  # fmt: skip
    assert joined.returncode == 0, joined.stdout + joined.stderr
    values = read_env_file(host / "worker.env")
    ports = [int(text.partition("=")[0]) for text in json.loads(values["TUNESMITH_TUNNEL_FORWARDS"])]
    for name, port in zip(("ARTIFACTS", "DATABASE", "BROKER"), ports, strict=True):
        assert f"127.0.0.1:{port}" in values[f"TUNESMITH_{name}_URL"]
    assert all(f"ok       {check}" in joined.stdout for check in ("database", "broker", "artifact store"))
    # The key first, as an admin does who no longer trusts the host; it can still leave.
    team.client.delete(f"{team.base_url}/api/v1/keys/{key['id']}").raise_for_status()
    left = run_command(host, "leave")
    assert left.returncode == 0, left.stdout + left.stderr
    assert not (host / "worker.env").exists()
    assert team.get("/worker-credentials")["items"][0]["revoked_at"] is not None


@pytest.mark.slow
def test_a_host_joins_and_sends_artifacts_through_caddys_own_authority(
    team: Platform, tmp_path: Path
) -> None:
    key, host = create_keys(team), tmp_path / "host"
    with tls_proxy(tmp_path / "caddy", urlsplit(team.base_url).port or 0) as proxy:
        options = ["--url", proxy.url, "--key", key["key"], "--name", "gpu-1", "--no-start"]
        refused = run_command(host, "join", *options)
        assert refused.returncode == 1 and "--ca-fingerprint" in refused.stderr, refused.stderr
        joined = run_command(host, "join", *options, "--ca-fingerprint", proxy.fingerprint)
        assert joined.returncode == 0, joined.stdout + joined.stderr
        print(refused.stderr, joined.stdout)
        assert re.search(f"ok +artifact store +api\\+{proxy.url}", joined.stdout)
        start_worker(team, host / "worker.env")
        assert team.wait_until_finished(team.submit(PREPARE))["status"] == "succeeded"
        left = run_command(host, "leave")
        assert left.returncode == 0, left.stdout + left.stderr


def test_a_host_that_cannot_join_learns_why(team: Platform, tmp_path: Path) -> None:
    create_keys(team)
    refused = run_command(tmp_path, "join", "--url", team.base_url, "--key", "ts_wrong-" + "x" * 32)
    assert refused.returncode == 1 and "unknown or revoked" in refused.stderr
    assert "scope `worker`" in refused.stderr
    admin = str(team.client.headers["Authorization"]).removeprefix("Bearer ")
    refused = run_command(tmp_path, "join", "--url", team.base_url, "--key", admin)
    assert refused.returncode == 1 and "has the scopes admin" in refused.stderr
    assert "--scope worker" in refused.stderr and not (tmp_path / "worker.env").exists()
    absent = run_command(tmp_path, "join", "--url", "http://127.0.0.1:9", "--key", "x")
    assert absent.returncode == 1 and "--via ssh://" in absent.stderr


def start_worker(team: Platform, env_file: Path) -> "subprocess.Popen[bytes]":
    """Start the worker of the host, whose variables are those of its file."""
    ours, team.environment = team.environment, dict(team.environment)
    for name in [name for name in team.environment if name.startswith("TUNESMITH_")]:
        del team.environment[name]
    arguments = ["--env-file", str(env_file), "--name", "gpu-1", "--queue", "cpu"]
    try:
        return team.start(["-m", "workers", *arguments], "host", TUNESMITH_WARM_START="false")
    finally:
        team.environment = ours


def count_connections(url: str, role: str) -> int:
    with psycopg.connect(url) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
        (count,) = connection.execute(query, [role]).fetchone() or (0,)
    return int(count)
