"""moto's server as a process: a bucket of S3 that a test can freeze, lock, or count the requests of."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import httpx2

from tests.services import free_port

# Only a server that hangs needs as long.
START_SECONDS = 120
REQUEST_SECONDS = 60
BUCKET = "artifacts"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


class S3Server:
    """A process of moto with one bucket, in memory."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "moto.log"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "MOTO_S3_CUSTOM_ENDPOINTS": self.url}
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_up():
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)
        self.client().create_bucket(Bucket=BUCKET)

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process uses the bucket."""
        return {**CREDENTIALS, "TUNESMITH_S3_ENDPOINT_URL": self.url}

    def client(self, service: str = "s3", **credentials: str) -> Any:
        """Return a client of boto3."""
        keys = {
            "aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        }
        return boto3.client(
            service, endpoint_url=self.url, region_name="us-east-1", **{**keys, **credentials}
        )

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys in the bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def count_requests(self, *texts: str) -> int:
        """Return how many lines of the access log contain these texts."""
        return sum(all(text in line for text in texts) for line in self._log.read_text().splitlines())

    def freeze(self) -> None:
        """Suspend the process: connections stay open, and nothing responds."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process."""
        os.kill(self._process.pid, signal.SIGCONT)

    @contextmanager
    def require_credentials(self) -> Iterator[dict[str, str]]:
        """Check signatures during the block; yield the credentials of a user who may use the bucket."""
        iam = self.client("iam")
        iam.create_user(UserName="user")
        iam.put_user_policy(UserName="user", PolicyName="s3", PolicyDocument=json.dumps(POLICY))
        key = iam.create_access_key(UserName="user")["AccessKey"]
        before = self._set_free_requests("0")
        try:
            yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        finally:
            self._set_free_requests(before)
            iam.delete_user_policy(UserName="user", PolicyName="s3")
            iam.delete_access_key(UserName="user", AccessKeyId=key["AccessKeyId"])
            iam.delete_user(UserName="user")

    def _set_free_requests(self, count: str) -> str:
        """Set after how many requests signatures are checked, and return the number before."""
        response = httpx2.post(
            f"{self.url}/moto-api/reset-auth",
            content=count,
            headers={"Content-Type": "text/plain"},
            timeout=REQUEST_SECONDS,
        )
        return str(response.raise_for_status().json()["PREVIOUS_INITIAL_NO_AUTH_ACTION_COUNT"])

    def stop(self) -> None:
        """Kill the process; its content is lost."""
        self._process.kill()
        self._process.wait(START_SECONDS)

    def _is_up(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/moto-api/").status_code < 500
        except httpx2.TransportError:
            return False


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server with a bucket for the block."""
    with TemporaryDirectory(prefix="tunesmith-s3-") as folder:
        server = S3Server(Path(folder))
        try:
            yield server
        finally:
            server.stop()
