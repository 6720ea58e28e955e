"""The whole product as processes: an API, any number of workers, and an HTTP client."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from sqlmodel import Session

from app.storage.artifacts import ArtifactStore
from app.storage.database import create_database_engine
from app.tables import Model, ModelKind
from app.tables.base import new_id
from tests.services import free_port
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems

ROOT = Path(__file__).parents[2]
QUICK = {
    # A busy machine stops a process for seconds, which must not cost a run its attempt.
    "TUNESMITH_LEASE_SECONDS": "60",
    "TUNESMITH_HEARTBEAT_SECONDS": "1",
    "TUNESMITH_SWEEP_SECONDS": "0.5",
    "TUNESMITH_RENOTIFY_SECONDS": "2",
    "TUNESMITH_STOP_GRACE_SECONDS": "4",
    # Each comparison loads the model once more; only its own tests turn it on.
    "TUNESMITH_PARITY": "off",
    # Most tests start few programs that need the packages; those of warm starts turn it on.
    "TUNESMITH_WARM_START": "false",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}

# For a worker whose lease a test lets end.
SHORT_LEASE = {"TUNESMITH_LEASE_SECONDS": "8"}


class Platform:
    """One installation: its data directory, its processes, and what a client does with it."""

    def __init__(self, folder: Path, starter: Path, **settings: str) -> None:
        self.folder = folder
        self.root = ROOT
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
        self.client = httpx2.Client(timeout=120)
        self.base_url = ""

    def start_api(self, *arguments: str, command: list[str] | None = None) -> subprocess.Popen[bytes]:
        """Start an API without a worker and wait until it is ready."""
        return self.start_command([*(command or ["-m", "app"]), "--no-worker", *arguments])

    def start_command(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a service by the arguments of Python, and wait until it is ready."""
        port = free_port()
        api = self.start([*command, "--port", str(port)], "api")
        self.base_url = f"http://127.0.0.1:{port}"
        self.client.base_url = self.base_url
        wait_until(lambda: self._is_ready(api), 120, "the API is not ready")
        return api

    def start_service(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start an API with its own worker, as a person does, and wait until it is ready."""
        return self.start_command(["-m", "app", *arguments])

    def start_worker(
        self, name: str = "worker", queue: str = "cpu", *, prefix: Sequence[str] = (), **settings: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it is listed."""
        command = ["-m", "workers", "--queue", queue, "--name", name]
        worker = self.start(command, name, prefix=prefix, **settings)
        wait_until(lambda: self.find_worker(worker.pid) is not None, 120, f"{name} does not join")
        return worker

    def start(
        self, arguments: list[str], name: str, *, prefix: Sequence[str] = (), **settings: str
    ) -> subprocess.Popen[bytes]:
        """Start Python with the installation's settings; its output goes to `<name>.log`.

        The prefix is a command that executes another one, such as `ip netns exec NAME`.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*prefix, sys.executable, *arguments],
                env={**self.environment, **settings},
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    @property
    def database_url(self) -> str:
        """The URL of the installation's database."""
        sqlite = f"sqlite:///{self.folder / 'tunesmith.db'}"
        return self.environment.get("TUNESMITH_DATABASE_URL", sqlite)

    def stop(self) -> None:
        """Kill every process and its descendants."""
        self.client.close()
        for process in self.processes:
            kill(process)

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON of a GET that must succeed."""
        return self._read_json(self.client.get(f"/api/v1{path}", params=query))

    def post(self, path: str, body: Any = None) -> Any:
        """Return the JSON of a POST that must succeed."""
        return self._read_json(self.client.post(f"/api/v1{path}", json=body))

    def upload(self, name: str, rows: list[dict[str, str]]) -> str:
        """Upload rows and return the dataset's id."""
        content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
        answer = self.client.post("/api/v1/datasets", data={"name": name}, files={"file": (name, content)})
        dataset: str = self._read_json(answer)["id"]
        return dataset

    def upload_examples(self) -> None:
        """Upload `train` and `test`."""
        self.upload("train", [dict(row) for row in generate_problems(160, ProblemSplit.train, seed=1)])
        self.upload("test", [dict(row) for row in generate_problems(24, ProblemSplit.held_out, seed=1)])

    def register_adapter(self, name: str, adapter: Path) -> str:
        """Add an adapter of the starter to the registry, as a training run does, and return its id."""
        model_id = new_id("model")
        store = ArtifactStore(f"file://{self.folder / 'artifacts'}", self.folder / "cache")
        published = store.publish_folder(adapter, f"models/{model_id}")
        base = str((self.folder / "models" / "starter").resolve())
        row: dict[str, Any] = {"id": model_id, "name": name, "kind": ModelKind.adapter, "base": base}
        row |= {"artifact": published.key, "sha256": published.sha256, "size_bytes": published.size_bytes}
        engine = create_database_engine(self.database_url)
        with Session(engine) as session, session.begin():
            session.add(Model(**row))
        engine.dispose()
        return model_id

    def request_deployment(self, name: str, model: str = "starter", **options: Any) -> str:
        """Create a deployment and return its id."""
        deployment: str = self.post("/deployments", {"name": name, "model": model, **options})["id"]
        return deployment

    def deploy(self, name: str, model: str = "starter", **options: Any) -> str:
        """Create a deployment, wait until it is ready, and return its id."""
        deployment = self.request_deployment(name, model, **options)
        self.wait_for_status(deployment, "ready")
        return deployment

    def wait_for_status(self, deployment: str, status: str, seconds: float = 120) -> None:
        """Wait until a deployment has this status."""
        self.wait_for_field(deployment, "status", status, seconds)

    def wait_for_field(self, deployment: str, field: str, value: Any, seconds: float = 120) -> None:
        """Wait until a deployment shows this value."""
        wait_until(
            lambda: self.get(f"/deployments/{deployment}")[field] == value,
            seconds,
            lambda: f"{field} is not {value}: {self.get(f'/deployments/{deployment}')}",
        )

    def wait_for_use(self, deployment: str) -> None:
        """Wait until a request to a deployment has been recorded."""
        wait_until(
            lambda: self.get(f"/deployments/{deployment}")["last_used_at"] is not None,
            120,
            "no use is recorded",
        )

    def submit(self, *stages: dict[str, Any], **fields: Any) -> str:
        """Submit a job and return its id."""
        job: str = self.post("/jobs", {"name": "test", "stages": list(stages), **fields})["id"]
        return job

    def job(self, job_id: str) -> Any:
        """Return the job as the API shows it."""
        return self.get(f"/jobs/{job_id}")

    def run(self, job_id: str, position: int = 0) -> Any:
        """Return the job's run at this position."""
        return self.job(job_id)["runs"][position]

    def wait_until_finished(self, job_id: str, seconds: float = 400) -> Any:
        """Wait until the job has finished and return it."""
        wait_until(
            lambda: self.job(job_id)["status"] in ("succeeded", "failed", "cancelled"),
            seconds,
            lambda: f"{self.job(job_id)}",
        )
        return self.job(job_id)

    def events(self, run_id: str, kind: str | None = None) -> list[Any]:
        """Return all events of a run, over all pages."""
        found: list[Any] = []
        after: int | None = 0
        while after is not None:
            query = {"after": after, "limit": 200, **({"type": kind} if kind else {})}
            page = self.get(f"/runs/{run_id}/events", **query)
            found += page["items"]
            after = page["next"]
        return found

    def losses(self, run_id: str) -> dict[int, float]:
        """Return the loss by step; for a repeated step, the last one."""
        metrics = [event for event in self.events(run_id, "metrics") if "loss" in event["data"]]
        return {event["step"]: event["data"]["loss"] for event in metrics}

    def first_resumed_step(self, job_id: str) -> int:
        """Wait for the second attempt of the job's first run, and return the first step that it logs."""
        run_id = self.run(job_id)["id"]

        def steps() -> list[int]:
            return [event["step"] for event in self.events(run_id, "metrics") if event["attempt"] == 2]

        wait_until(lambda: bool(steps()), 120, "the second attempt does not begin")
        return min(steps())

    def find_worker(self, pid: int) -> Any:
        """Return the listed worker with this process id, or None."""
        workers = self.get("/workers")["items"]
        return next((worker for worker in workers if worker["pid"] == pid), None)

    def _is_ready(self, api: subprocess.Popen[bytes]) -> bool:
        assert api.poll() is None, (self.folder / "api.log").read_text()
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    @staticmethod
    def _read_json(answer: httpx2.Response) -> Any:
        assert answer.is_success, answer.text
        return answer.json()


def wait_until(
    condition: Callable[[], bool],
    seconds: float,
    message: str | Callable[[], str],
    poll_seconds: float = 0.1,
) -> None:
    """Wait for a condition; fail with the message after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message() if callable(message) else message
        time.sleep(poll_seconds)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants, suspended ones too."""
    if process.poll() is None:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            try:
                member.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
    process.wait()


def list_children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return all descendants of a worker."""
    processes: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return processes


def sft_stage(**options: Any) -> dict[str, Any]:
    """Return a small SFT stage."""
    return {
        "stage": "sft",
        "base": "starter",
        "dataset": "train",
        "max_steps": 20,
        "batch_size": 8,
        "log_every_steps": 1,
        **options,
    }


# Long enough that a test can interfere, with checkpoints that are frequent enough to see the effect.
LONG = {"max_steps": 100_000, "save_every_steps": 20, "log_every_steps": 5}


def short_stage() -> dict[str, Any]:
    """Return a stage that takes a second: without a base it does not import torch."""
    return {"stage": "prepare", "dataset": "train", "split": {"test": 1}}


def find_engines(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the processes of a worker's engines, without their guards."""
    return find_children(worker, "serving.engines.hf")


def find_children(worker: subprocess.Popen[bytes], module: str) -> list[psutil.Process]:
    """Return the processes of a worker that run this module; of programs, not their guards."""
    found = []
    for process in list_children(worker):
        # Others of its processes may end meanwhile.
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if module in command and "workers.hosts.guard" not in command[: command.index(module)]:
                found.append(process)
    return found


QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "Kofi has 3 cups and buys 4 more. How many cups does Kofi have?"}
]


def chat(client: OpenAI, model: str) -> str:
    """Return a model's completion of a question."""
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=8, temperature=0)
    return answer.choices[0].message.content or ""
