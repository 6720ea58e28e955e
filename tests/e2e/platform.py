"""The whole product as processes of their own: an API, any number of workers, and an HTTP client."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
from openai import OpenAI
from sqlmodel import Session

from app.storage.artifacts import ArtifactStore
from app.storage.database import create_database_engine
from app.tables import Model, ModelKind
from app.tables.base import new_id
from tests.services import free_port
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems

ROOT = Path(__file__).parents[2]
# Leases short enough that a test can wait for one to end.
QUICK = {
    "TUNESMITH_LEASE_SECONDS": "4",
    "TUNESMITH_HEARTBEAT_SECONDS": "0.5",
    "TUNESMITH_SWEEP_SECONDS": "0.5",
    "TUNESMITH_RENOTIFY_SECONDS": "2",
    "TUNESMITH_STOP_GRACE_SECONDS": "4",
    # Each comparison loads the model once more; its own tests ask for it.
    "TUNESMITH_PARITY": "off",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


class Platform:
    """One installation: its data directory, its processes, and what a client does with it."""

    def __init__(self, folder: Path, starter: Path, **settings: str) -> None:
        self.folder = folder
        (folder / "models").mkdir(parents=True)
        (folder / "models" / "starter").symlink_to(starter)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TUNESMITH_")},
            **QUICK,
            "TUNESMITH_DATA_DIR": str(folder),
            "TUNESMITH_MODEL_ROOTS": json.dumps([str(folder / "models"), str(starter.parent)]),
            **settings,
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self.client = httpx2.Client(timeout=30)
        self.base_url = ""

    def start_api(self, *arguments: str, command: list[str] | None = None) -> subprocess.Popen[bytes]:
        """Start an API without a worker and wait until it answers."""
        port = free_port()
        api = self.start([*(command or ["-m", "app"]), "--no-worker", "--port", str(port), *arguments], "api")
        self.base_url = f"http://127.0.0.1:{port}"
        self.client.base_url = self.base_url
        until(lambda: self._answers(api), 120, "the API does not answer")
        return api

    def start_worker(
        self, name: str = "worker", queue: str = "cpu", **settings: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it is listed."""
        worker = self.start(["-m", "workers", "--queue", queue, "--name", name], name, **settings)
        until(lambda: self.worker_of(worker.pid) is not None, 120, f"{name} does not join")
        return worker

    def start(self, arguments: list[str], name: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start Python with the installation's settings; what it prints goes to a log of its name."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**self.environment, **settings},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """Kill every process with all that it started."""
        self.client.close()
        for process in self.processes:
            kill(process)

    def get(self, path: str, **query: Any) -> Any:
        """The JSON of a GET that must succeed."""
        return self._checked(self.client.get(f"/api/v1{path}", params=query))

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON of a POST that must succeed."""
        return self._checked(self.client.post(f"/api/v1{path}", json=body))

    def upload(self, name: str, rows: list[dict[str, str]]) -> str:
        """Upload rows and answer the dataset's id."""
        content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        answer = self.client.post("/api/v1/datasets", data={"name": name}, files={"file": (name, content)})
        dataset: str = self._checked(answer)["id"]
        return dataset

    def upload_examples(self) -> None:
        """Upload `train` and `test`."""
        self.upload("train", [dict(row) for row in generate_problems(160, ProblemSplit.train, seed=1)])
        self.upload("test", [dict(row) for row in generate_problems(24, ProblemSplit.held_out, seed=1)])

    def register(self, name: str, adapter: Path) -> str:
        """Put an adapter of the starter into the registry, as a training run would; answers its id."""
        model_id = new_id("model")
        store = ArtifactStore(f"file://{self.folder / 'artifacts'}")
        published = store.publish_folder(adapter, f"models/{model_id}")
        base = str((self.folder / "models" / "starter").resolve())
        row: dict[str, Any] = {"id": model_id, "name": name, "kind": ModelKind.adapter, "base": base}
        row |= {"artifact": published.key, "sha256": published.sha256, "size_bytes": published.size_bytes}
        sqlite = f"sqlite:///{self.folder / 'tunesmith.db'}"
        engine = create_database_engine(self.environment.get("TUNESMITH_DATABASE_URL", sqlite))
        with Session(engine) as session, session.begin():
            session.add(Model(**row))
        engine.dispose()
        return model_id

    def ask_for(self, name: str, model: str = "starter", **options: Any) -> str:
        """Ask for a deployment and answer its id."""
        deployment: str = self.post("/deployments", {"name": name, "model": model, **options})["id"]
        return deployment

    def deploy(self, name: str, model: str = "starter", **options: Any) -> str:
        """Ask for a deployment, wait until it is ready, and answer its id."""
        deployment = self.ask_for(name, model, **options)
        self.await_status(deployment, "ready")
        return deployment

    def await_status(self, deployment: str, status: str, seconds: float = 120) -> None:
        """Wait until a deployment has this status."""
        self.await_field(deployment, "status", status, seconds)

    def await_field(self, deployment: str, field: str, value: Any, seconds: float = 120) -> None:
        """Wait until a deployment shows this value."""
        until(
            lambda: self.get(f"/deployments/{deployment}")[field] == value,
            seconds,
            lambda: f"{field} is not {value}: {self.get(f'/deployments/{deployment}')}",
        )

    def await_use(self, deployment: str) -> None:
        """Wait until it is noted that a deployment was asked."""
        until(
            lambda: self.get(f"/deployments/{deployment}")["last_used_at"] is not None, 120, "no use is noted"
        )

    def submit(self, *stages: dict[str, Any], **fields: Any) -> str:
        """Post a job and answer its id."""
        job: str = self.post("/jobs", {"name": "test", "stages": list(stages), **fields})["id"]
        return job

    def job(self, job_id: str) -> Any:
        """The job as the API shows it."""
        return self.get(f"/jobs/{job_id}")

    def run(self, job_id: str, position: int = 0) -> Any:
        """One of the job's runs."""
        return self.job(job_id)["runs"][position]

    def finish(self, job_id: str, seconds: float = 240) -> Any:
        """Wait until the job has finished and answer it."""
        until(
            lambda: self.job(job_id)["status"] in ("succeeded", "failed", "cancelled"),
            seconds,
            lambda: f"{self.job(job_id)}",
        )
        return self.job(job_id)

    def events(self, run_id: str, kind: str | None = None) -> list[Any]:
        """All events of a run, over all pages."""
        found: list[Any] = []
        after: int | None = 0
        while after is not None:
            query = {"after": after, "limit": 200, **({"type": kind} if kind else {})}
            page = self.get(f"/runs/{run_id}/events", **query)
            found += page["items"]
            after = page["next"]
        return found

    def losses(self, run_id: str) -> dict[int, float]:
        """Loss by step; a step that was done again counts as it was done last."""
        metrics = [event for event in self.events(run_id, "metrics") if "loss" in event["data"]]
        return {event["step"]: event["data"]["loss"] for event in metrics}

    def resumed_at(self, job_id: str) -> int:
        """The first step that the second attempt at the job's first run tells of; waits for it."""
        run_id = self.run(job_id)["id"]

        def steps() -> list[int]:
            return [event["step"] for event in self.events(run_id, "metrics") if event["attempt"] == 2]

        until(lambda: bool(steps()), 120, "the second attempt does not begin")
        return min(steps())

    def worker_of(self, pid: int) -> Any:
        """The listed worker with this process id."""
        workers = self.get("/workers")["items"]
        return next((worker for worker in workers if worker["pid"] == pid), None)

    def _answers(self, api: subprocess.Popen[bytes]) -> bool:
        assert api.poll() is None, (self.folder / "api.log").read_text()
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    @staticmethod
    def _checked(answer: httpx2.Response) -> Any:
        assert answer.is_success, answer.text
        return answer.json()


def until(condition: Callable[[], bool], seconds: float, message: str | Callable[[], str]) -> None:
    """Wait for a condition; fails with the message."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message() if callable(message) else message
        time.sleep(0.1)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and whatever it started, stopped ones too."""
    if process.poll() is None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            try:
                member.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
    process.wait()


def family_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that a worker has started, down to the last."""
    processes: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return processes


def sft(**options: Any) -> dict[str, Any]:
    """A small SFT stage."""
    return {
        "stage": "sft",
        "base": "starter",
        "dataset": "train",
        "max_steps": 20,
        "batch_size": 8,
        "log_every_steps": 1,
        **options,
    }


# Long enough that a test can interfere, saving often enough that it can see the effect.
LONG = {"max_steps": 100_000, "save_every_steps": 20, "log_every_steps": 5}


def short() -> dict[str, Any]:
    """A run of a second: without a base it needs no torch, whose import would take several."""
    return {"stage": "prepare", "dataset": "train", "split": {"test": 1}}


def engines_of(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The engines' own processes, below their guards."""
    found = []
    for process in family_of(worker):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if "serving.engines.hf" in command and "workers.hosts.guarded_process" not in command:
                found.append(process)
    return found


QUESTION = [{"role": "user", "content": "Kofi has 3 cups and buys 4 more. How many cups does Kofi have?"}]


def ask(client: OpenAI, model: str) -> str:
    """A model's answer to a question."""
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    return answer.choices[0].message.content or ""
