"""Goal: no fine-tuning job is lost or carried out twice, whatever dies.

Method: twenty clients create one job each at once by OpenAI's client, which repeats a request that got no
response. Meanwhile the API and the worker are killed and started again, three times. Each job has a suffix
of its own, so a second one of the same request would show.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.e2e.platform import SHORT_LEASE, Platform, kill, wait_until
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems

MODEL = "gpt-4o-mini"
N_JOBS = 20
N_KILLS = 3
FINISHED = ("succeeded", "failed", "cancelled")
TRAINING = {"max_length": 128, "tuning": {"rank": 4}, "learning_rate": 2e-3}


@pytest.fixture
def platform(tmp_path: Path, starter: Path) -> Iterator[Platform]:
    models = json.dumps({MODEL: "starter"})
    platform = Platform(tmp_path / "data", starter, TUNESMITH_OPENAI_MODELS=models, **SHORT_LEASE)
    platform.environment |= {"TUNESMITH_WARM_START": "true", "TUNESMITH_MAX_FAILURES": "10"}
    yield platform
    platform.stop()


@pytest.mark.slow
def test_no_job_is_lost_or_carried_out_twice_while_api_and_worker_are_killed(platform: Platform) -> None:
    api, worker = platform.start_api(), platform.start_worker()
    port = platform.base_url.rpartition(":")[2]
    client = OpenAI(base_url=f"{platform.base_url}/v1", api_key="unused", max_retries=30, timeout=20)
    problems = generate_problems(8, ProblemSplit.train, seed=3)
    rows = [
        {
            "messages": [
                {"role": "user", "content": each["question"]},
                {"role": "assistant", "content": each["answer"]},
            ]
        }
        for each in problems
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = client.files.create(file=("rows.jsonl", content), purpose="fine-tune")

    def create(number: int) -> str:
        hyperparameters: Any = {"n_epochs": 2, "batch_size": 8}
        job = client.fine_tuning.jobs.create(
            model=MODEL,
            training_file=file.id,
            suffix=f"n{number}",
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            extra_body={"training": TRAINING},
        )
        return job.id

    with ThreadPoolExecutor(N_JOBS) as pool:
        creating = [pool.submit(create, number) for number in range(N_JOBS)]
        for round_number in range(N_KILLS):
            time.sleep(0.4 + round_number)  # At another point of the work each time.
            kill(api)
            kill(worker)
            api = platform.start(["-m", "app", "--no-worker", "--port", port], "api")
            wait_until(lambda: is_up(platform), 120, "the API is not ready")
            worker = platform.start_worker(f"worker{round_number}")
        created = [future.result() for future in creating]

    def list_jobs() -> list[Any]:
        return list(client.fine_tuning.jobs.list(limit=100))

    wait_until(lambda: all(job.status in FINISHED for job in list_jobs()), 600, "jobs do not end")
    jobs = list_jobs()
    assert sorted(job.id for job in jobs) == sorted(created)
    assert Counter(job.status for job in jobs) == {"succeeded": N_JOBS}, [job.error for job in jobs]
    names = [job.fine_tuned_model.split(":")[3] for job in jobs]
    assert Counter(names) == {f"n{number}": 1 for number in range(N_JOBS)}
    own = platform.get("/jobs", limit=200)["items"]
    assert len(own) == N_JOBS
    models = Counter(model["run_id"] for model in platform.get("/models", limit=200)["items"])
    attempts = [platform.job(job["id"])["runs"][0]["attempt"] for job in own]
    # Two epochs make a checkpoint and the trained model of each run.
    assert set(models.values()) == {2} and len(models) == N_JOBS
    assert max(attempts) > 1, "no kill has hit a run"


def is_up(platform: Platform) -> bool:
    try:
        return platform.client.get("/readyz").status_code == httpx2.codes.OK
    except httpx2.TransportError:
        return False
