"""Goal: workers with data directories of their own, and no file system in common, lose nothing of a run.

Method: the store is a bucket, or the API. A worker is killed; one with an empty data directory resumes.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from app.storage.api_store.upload import CHUNK_BYTES
from tests.chaos.files import write_base, write_interpreter
from tests.conftest import ROOT
from tests.e2e.conftest import create_database
from tests.e2e.platform import SHORT_LEASE, Platform, sft_stage, wait_until
from tests.s3_server import BUCKET, S3Server, s3_server
from tests.services import RedisServer

STEPS = 150
KILLED_UPLOAD = """
import os, signal, sys
from pathlib import Path
from app.storage.api_store.client import ArtifactsApi
from app.storage.opening import get_store
request, sent = ArtifactsApi.request, []
def count(self, method, path, **options):
    response = request(self, method, path, **options)
    sent.extend([1] * (method == "PATCH"))
    if len(sent) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return response
ArtifactsApi.request = count
get_store().publish_file(Path(sys.argv[1]), sys.argv[2])
"""


class Installation:
    """A platform whose workers reach the store as another host does."""

    def __init__(self, platform: Platform, remote: dict[str, str], bucket: S3Server | None) -> None:
        self.platform = platform
        self.remote = remote
        self.bucket = bucket

    def start_worker(self, name: str, **options: str) -> subprocess.Popen[bytes]:
        """Start a worker with an empty data directory."""
        folder = self.platform.folder.with_name(name)
        folder.mkdir()
        settings = {**self.remote, **options, "TUNESMITH_DATA_DIR": str(folder)}
        return self.platform.start_worker(name, **settings)

    def resume_elsewhere(self, job: str) -> Any:
        """Kill the first worker after a checkpoint, and return the run that the second one has finished."""
        first = self.start_worker("first", **SHORT_LEASE)
        run_id = self.platform.run(job)["id"]
        checkpoints = f"/runs/{run_id}/checkpoints"
        wait_until(lambda: self.platform.get(checkpoints)["items"] != [], 120, "no checkpoint is stored")
        os.kill(first.pid, signal.SIGKILL)
        self.start_worker("second")
        assert self.platform.wait_until_finished(job)["status"] == "succeeded", self.platform.job(job)
        return self.platform.run(job)


@pytest.fixture
def make_installation(
    tmp_path: Path, postgres: str, broker: RedisServer, request: pytest.FixtureRequest
) -> Iterator[Any]:
    """Return a function that starts an API with a bucket, or with a folder that only it reaches."""
    with ExitStack() as stack:

        def make(kind: str, starter: Path, **settings: str) -> Installation:
            database = f"test_{tmp_path.name}"[:60].lower()
            create_database(postgres, database, "template")
            settings |= {
                "TUNESMITH_DATABASE_URL": postgres.replace("/postgres", f"/{database}"),
                "TUNESMITH_BROKER_URL": broker.url,
            }
            bucket = None
            if kind == "s3":
                bucket = stack.enter_context(s3_server())
                settings |= {**bucket.environment, "TUNESMITH_ARTIFACTS_URL": f"s3://{BUCKET}/prefix"}
            platform = Platform(tmp_path / "data", starter, **settings)
            stack.callback(platform.stop)
            platform.start_api()
            remote = {} if kind == "s3" else add_keys(platform)
            platform.upload_examples()
            return Installation(platform, remote, bucket)

        yield make


def add_keys(platform: Platform) -> dict[str, str]:
    """Lock the service, and return the settings of a host whose artifacts travel through the API."""
    admin = platform.post("/keys", {"name": "admin", "scopes": ["admin"], "lock_service": True})
    platform.client.headers["Authorization"] = f"Bearer {admin['key']}"
    key = platform.post("/keys", {"name": "host", "scopes": ["worker"]})["key"]
    address = platform.base_url
    return {"TUNESMITH_ARTIFACTS_URL": f"api+{address}", "TUNESMITH_WORKER_KEY": key}


# A second installation costs 20 s of CPU, and the tests of the bucket cover what differs.
@pytest.mark.parametrize("kind", [pytest.param("s3", marks=pytest.mark.slow), "api"])
def test_a_run_resumes_from_the_store_in_another_data_directory(
    make_installation: Any, tmp_path: Path, kind: str
) -> None:
    base, ledger, python = tmp_path / "base", tmp_path / "ledger", tmp_path / "python"
    write_base(base)
    write_interpreter(python, ledger)
    installation = make_installation(kind, base, TUNESMITH_TRAINER_PYTHON=str(python))
    platform = installation.platform
    run = installation.resume_elsewhere(platform.submit(sft_stage(max_steps=STEPS, save_every_steps=10)))
    entries = [json.loads(line) for line in ledger.read_text().splitlines()]
    (resumed,) = [entry for entry in entries if entry["kind"] == "resumed"]
    assert run["attempt"] == 2 and resumed["step"] >= 10 and resumed["intact"]
    files = platform.get(f"/models/{run['model_id']}/files")["items"]
    assert {file["path"] for file in files} == {"adapter_config.json", "adapter_model.safetensors"}
    for file in files:
        content = platform.client.get(f"/api/v1/models/{run['model_id']}/files/{file['path']}").content
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    names = {file["name"] for file in platform.get(f"/runs/{run['id']}/files")["items"]}
    assert {"log.txt", "events.jsonl", "result.json"} <= names
    if kind == "api":
        check_killed_upload(installation, tmp_path)


def check_killed_upload(installation: Installation, tmp_path: Path) -> None:
    """Kill an upload to the API after two of four chunks; the next one sends the others."""
    content = b"".join(bytes([n]) * CHUNK_BYTES for n in range(3)) + b"end"
    source, log = tmp_path / "large", installation.platform.folder / "api.log"
    source.write_bytes(content)
    environment = {
        **installation.platform.environment,
        **installation.remote,
        "TUNESMITH_DATA_DIR": str(tmp_path / "third"),
    }

    def upload(kill_after: int) -> tuple[int, int]:
        command = [sys.executable, "-c", KILLED_UPLOAD, str(source), "datasets/killed", str(kill_after)]
        before = log.read_text().count("PATCH /api/v1/artifacts")
        status = subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
        return status, log.read_text().count("PATCH /api/v1/artifacts") - before

    assert upload(kill_after=2) == (-signal.SIGKILL, 2)
    status, n_sent = upload(kill_after=-1)
    print(f"4 chunks, killed after 2: the second upload sent {n_sent}")
    assert (status, n_sent) == (0, 2)
    stored = installation.platform.folder / "artifacts" / "datasets" / "killed"
    assert stored.read_bytes() == content


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["s3", "api"])
def test_a_model_is_trained_resumed_merged_and_deployed_without_a_common_disk(
    make_installation: Any, starter: Path, kind: str
) -> None:
    installation = make_installation(kind, starter)
    platform = installation.platform
    job = platform.submit(
        sft_stage(max_steps=120, save_every_steps=10), {"stage": "merge", "model": {"stage": "sft"}}
    )
    run = installation.resume_elsewhere(job)
    assert run["attempt"] == 2 and platform.first_resumed_step(job) > 10
    merged = platform.run(job, 1)["model_id"]
    platform.deploy("merged", merged)
    answer = platform.client.post(
        "/v1/chat/completions",
        json={"model": "merged", "messages": [{"role": "user", "content": "1 + 1 = ?"}], "max_tokens": 4},
    )
    assert answer.status_code == 200, answer.text
    if installation.bucket is not None:
        assert installation.bucket.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
