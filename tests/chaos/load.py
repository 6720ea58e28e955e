"""The clients: each has one cheap job in progress and repeats every failed request."""

import itertools
import random
import threading
import time
from collections import Counter
from typing import Any

import httpx2

from tests.chaos import files
from tests.chaos.history import FinalState, History, Request, Submission
from tests.chaos.platforms import Platform

TIMEOUT_SECONDS = 10
POLL_SECONDS = 0.5
START_SECONDS = 600
RETURN_SECONDS = 180
FINISHED = {"succeeded", "failed", "cancelled", "skipped"}
STEPS = (10, 60)
SAVE_EVERY_STEPS = 10


class Api:
    """The HTTP API of an installation, through any of its processes; a failed request returns None."""

    def __init__(self, urls: list[str], history: History, seed: str) -> None:
        self._urls = urls
        self._history = history
        self._random = random.Random(seed)
        self._client = httpx2.Client(timeout=TIMEOUT_SECONDS)

    def send(self, method: str, path: str, **options: Any) -> Any:
        """Send a request to one API process; return the JSON of the response."""
        url = self._random.choice(self._urls)
        try:
            response = self._client.request(method, f"{url}/api/v1{path}", **options)
        except httpx2.TransportError:
            self._history.add_response("no response", "")
            return None
        self._history.add_response(str(response.status_code), f"{method} {path}: {response.text[:300]}")
        return response.json() if response.is_success else None

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON of a GET that must succeed once the API is up again: all faults have ended."""
        deadline = time.monotonic() + RETURN_SECONDS
        while (found := self.send("GET", path, params=query)) is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"GET {path} still fails after all faults have ended")
            time.sleep(POLL_SECONDS)
        return found

    def get_all(self, path: str, **query: Any) -> list[Any]:
        """Return the items of all pages."""
        items: list[Any] = []
        while True:
            page = self.get(path, limit=200, **query)
            items += page["items"]
            if page["next"] is None:
                return items
            query["after"] = page["next"]

    def is_ready(self, url: str) -> bool:
        """Return whether the API process at this address is ready."""
        try:
            return self._client.get(f"{url}/readyz").status_code == httpx2.codes.OK
        except httpx2.TransportError:
            return False


class Load:
    """A number of clients that submit jobs until they are stopped."""

    def __init__(self, platform: Platform, seed: int, n_clients: int) -> None:
        self.history = History()
        self._urls = platform.urls
        self._n_workers = max(1, len(platform.workers))
        self._seed = seed
        self._numbers = itertools.count(1)
        self._is_draining = threading.Event()
        self._is_closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._run_client, args=(number,), name=f"client-{number}", daemon=True)
            for number in range(n_clients)
        ]

    def start(self) -> None:
        """Upload the dataset as soon as the API accepts it, and start the clients."""
        api = self._api("start")
        upload = {"files": {"file": ("rows.jsonl", files.write_rows())}, "data": {"name": "rows"}}
        deadline = time.monotonic() + START_SECONDS
        while api.send("POST", "/datasets", **upload) is None:
            assert time.monotonic() < deadline, "the API accepts no upload before the first fault"
            time.sleep(POLL_SECONDS)
        self.history.responses.clear()
        for thread in self._threads:
            thread.start()

    def drain(self, seconds: float) -> float:
        """Submit no further jobs, wait until all have finished, and return how long that took."""
        self._is_draining.set()
        started = time.monotonic()
        for thread in self._threads:
            thread.join(max(0, started + seconds - time.monotonic()))
        self._is_closed.set()
        return time.monotonic() - started

    def read_final_state(self) -> FinalState:
        """Read all jobs, events and models."""
        api = self._api("end")
        jobs = [api.get(f"/jobs/{job['id']}") for job in api.get_all("/jobs")]
        run_ids = [run["id"] for job in jobs for run in job["runs"]]
        events = {run_id: api.get_all(f"/runs/{run_id}/events", after=0) for run_id in run_ids}
        models = Counter(model["run_id"] for model in api.get_all("/models") if model["run_id"])
        return FinalState(jobs, events, models, self._find_absent(api))

    def _find_absent(self, api: Api) -> list[str]:
        """Return the API processes that are not ready, and whether workers are missing, after some time."""
        deadline = time.monotonic() + RETURN_SECONDS
        while True:
            n_alive = len(api.get_all("/workers", alive=True))
            absent = [url for url in self._urls if not api.is_ready(url)]
            if n_alive < self._n_workers:
                absent.append(f"{self._n_workers - n_alive} of {self._n_workers} workers")
            if not absent or time.monotonic() > deadline:
                return absent
            time.sleep(POLL_SECONDS)

    def _api(self, name: str) -> Api:
        return Api(self._urls, self.history, f"{self._seed} {name}")

    def _run_client(self, number: int) -> None:
        api = self._api(f"client {number}")
        while not self._is_draining.is_set():
            key = f"job-{next(self._numbers):05d}"
            choose = random.Random(f"{self._seed} {key}")
            submission = Submission(key, choose.choices(list(Request), weights=[8, 1, 1])[0])
            self.history.submissions.append(submission)
            self._submit(api, submission, choose)
            self._follow(api, submission)

    def _submit(self, api: Api, submission: Submission, choose: random.Random) -> None:
        """Send a job with the same key until it is acknowledged, and often once more."""
        body = {"name": submission.key, "stages": _choose_stages(choose)}
        # A client that loses the response sends the job again.
        n_acknowledgements = choose.choice([1, 1, 2])
        while n_acknowledgements and not self._is_closed.is_set():
            headers = {"Idempotency-Key": submission.key}
            if (job := api.send("POST", "/jobs", headers=headers, json=body)) is None:
                self._is_closed.wait(POLL_SECONDS)
                continue
            submission.job_ids.add(job["id"])
            n_acknowledgements -= 1

    def _follow(self, api: Api, submission: Submission) -> None:
        """Poll a job until it has finished; pause or cancel it once, and resume it whenever it is paused."""
        request = submission.request
        while not self._is_closed.wait(POLL_SECONDS):
            path = f"/jobs/{submission.job_id}"
            if (job := api.send("GET", path)) is None:
                continue
            if job["status"] in FINISHED:
                return
            if job["status"] == "running" and request is not Request.complete:
                api.send("POST", f"{path}/{request}")
                request = Request.complete
            if job["status"] == "paused":
                api.send("POST", f"{path}/resume")


def _choose_stages(choose: random.Random) -> list[dict[str, Any]]:
    """Return one stage, or two of which the second continues from the model of the first."""
    stage = {"stage": "sft", "dataset": "rows", "save_every_steps": SAVE_EVERY_STEPS}
    bases: list[Any] = ["base", {"stage": "stage-0"}][: choose.choice([1, 1, 1, 2])]
    return [
        {**stage, "name": f"stage-{i}", "base": base, "max_steps": choose.randint(*STEPS)}
        for i, base in enumerate(bases)
    ]
