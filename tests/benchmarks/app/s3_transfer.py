"""Uploads to a bucket and downloads from it, against boto3's own `upload_file` and `download_file`.

python -m tests.benchmarks.app.s3_transfer [--megabytes 300] [--repeats 3]

The server is moto, in memory. Each transfer is a process of its own, whose largest memory is measured; the
two ways take turns. Ours also computes the SHA-256 of the whole file, and of each part that it sends.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import boto3

from tests.benchmarks.report import print_table
from tests.s3_server import BUCKET, CREDENTIALS, s3_server

WAYS = ("upload_file", "ours")


def main() -> None:
    """Print the median rate of each way, its ratio to boto3's, and the largest memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--transfer", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.transfer:
        _transfer(*options.transfer)
        return
    with tempfile.TemporaryDirectory() as folder, s3_server() as server:
        source = Path(folder, "source")
        with source.open("wb") as file:
            for _ in range(options.megabytes):
                file.write(os.urandom(1_000_000))
        measured: dict[tuple[str, str], list[dict[str, float]]] = {}
        for repeat in range(options.repeats):
            for way in WAYS[:: 1 if repeat % 2 else -1]:
                for direction in ("up", "down"):
                    result = _measure(server.url, folder, way, direction, f"{way}-{repeat}")
                    measured.setdefault((way, direction), []).append(result)
                server.client().delete_object(Bucket=BUCKET, Key=f"{way}-{repeat}")
    rates = {
        key: options.megabytes / statistics.median(result["seconds"] for result in results)
        for key, results in measured.items()
    }
    memory = {key: max(result["memory_mib"] for result in results) for key, results in measured.items()}
    rows = [
        [
            direction,
            *(f"{rates[way, direction]:.0f} MB/s, {memory[way, direction]:.0f} MiB" for way in WAYS),
            f"{rates['ours', direction] / rates['upload_file', direction]:.2f}",
        ]
        for direction in ("up", "down")
    ]
    print_table("One file, median", ["direction", "boto3", "ours", "rate, ours / boto3"], rows)


def _measure(url: str, folder: str, way: str, direction: str, key: str) -> dict[str, float]:
    environment = {
        **os.environ,
        **CREDENTIALS,
        "TUNESMITH_S3_ENDPOINT_URL": url,
        "TUNESMITH_DATA_DIR": folder,
    }
    environment["TUNESMITH_ARTIFACTS_URL"] = f"s3://{BUCKET}"
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.app.s3_transfer",
        "--transfer",
        way,
        direction,
        folder,
        key,
    ]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _transfer(way: str, direction: str, folder: str, key: str) -> None:
    source, received = Path(folder, "source"), Path(folder, "received")
    client: Any = None
    files: Any = None
    if way == "upload_file":
        # What `aws s3 cp` uses, without our settings of the client.
        client = boto3.client("s3", endpoint_url=os.environ["TUNESMITH_S3_ENDPOINT_URL"])
    else:
        from app.storage.opening import get_store

        files = get_store().fs
    started = time.perf_counter()
    if way == "ours" and direction == "up":
        files.upload(source, f"{BUCKET}/{key}")
    elif way == "ours":
        files.download(f"{BUCKET}/{key}", received)
    elif direction == "up":
        client.upload_file(str(source), BUCKET, key)
    else:
        client.download_file(BUCKET, key, str(received))
    seconds = time.perf_counter() - started
    assert direction == "up" or received.stat().st_size == source.stat().st_size
    # On Linux in KiB.
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "memory_mib": memory_mib}))


if __name__ == "__main__":
    main()
