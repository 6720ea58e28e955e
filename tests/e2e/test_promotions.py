"""Promotions under real traffic: an alias moves step by step, or back, whatever fails or is killed.

Goal: no failure of the new model stays with the clients, and no interruption moves the alias twice. Method:
two engines that a test can make fail or slow, the real gateway before them, a client that sends chats
throughout, and a worker as a process.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlmodel import Session, select

from app.storage.database import create_database_engine
from app.tables import AliasTraffic, Deployment, DeploymentStatus
from app.tables.base import utc_now
from tests.e2e.conftest import create_database, run_platform
from tests.e2e.platform import QUESTION, SHORT_LEASE, Platform, wait_until
from tests.integration.trainers.metrics.judge_server import JudgeServer, serve_judge
from tests.services import free_port
from trainers.configs import EngineKind, Queue

# Clients of each gateway, and the pause after a request.
CLIENTS = 2
PAUSE_SECONDS = 0.02
STEPS = [{"share": 0.3}, {"share": 0.6}, {"share": 1.0}]
# 21 requests without a failure show that at most a fifth fails.
ERRORS = {"max_error_rate": 0.2}
N_NEEDED = 21


class Engines:
    """The engines `stable` and `next`, which answer at once until a test changes `next`."""

    def __init__(self, stable: JudgeServer, following: JudgeServer) -> None:
        self.stable, self.following = stable, following

    def reset(self) -> None:
        for engine in (self.stable, self.following):
            engine.respond = lambda body: (200, "fine")
            engine.bodies.clear()

    def fail_every(self, n: int) -> None:
        """Let each n-th request to `next` fail."""
        following = self.following
        following.respond = lambda body: (
            (500, {"error": {"message": "broken"}}) if len(following.bodies) % n == 0 else (200, "fine")
        )

    def delay(self, seconds: float) -> None:
        def respond(body: dict[str, Any]) -> tuple[int, str]:
            time.sleep(seconds)
            return 200, "late"

        self.following.respond = respond


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    with ExitStack() as stack:
        servers = [stack.enter_context(serve_judge(lambda body: (200, "fine"))) for _ in range(2)]
        yield Engines(*servers)


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgeServer]:
    """Yield a judge that prefers the shorter response."""

    def respond(body: dict[str, Any]) -> tuple[int, str]:
        material = json.loads(body["messages"][1]["content"])
        lengths = len(material["response_a"]), len(material["response_b"])
        preferred = "tie" if lengths[0] == lengths[1] else "a" if lengths[0] < lengths[1] else "b"
        return 200, json.dumps({"reasoning": "", "preferred": preferred})

    with serve_judge(respond) as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def platform(
    engines: Engines,
    judge: JudgeServer,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Platform]:
    """Yield an installation whose deployments are rows with the addresses of the engines."""
    folder = tmp_path_factory.mktemp("promotions")
    endpoint = {"judge": {"url": judge.url, "api_key": "secret"}}
    settings = {"TUNESMITH_EVALUATION_ENDPOINTS": json.dumps(endpoint)}
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        create_database(server, "promotions", "template")
        settings["TUNESMITH_DATABASE_URL"] = server.replace("/postgres", "/promotions")
    with run_platform(Platform(folder / "data", folder / "no-model", **settings)) as platform:
        add_deployment(platform, "stable", engines.stable)
        add_deployment(platform, "next", engines.following)
        platform.start_worker(**SHORT_LEASE)
        yield platform


@pytest.fixture
def alias(platform: Platform, engines: Engines, request: pytest.FixtureRequest) -> str:
    """Return the name of an alias of the test that routes to `stable`."""
    engines.reset()
    name = f"alias-{len(platform.get('/aliases')['items'])}"
    put_alias(platform, name, stable=1)
    return name


def add_deployment(platform: Platform, name: str, engine: JudgeServer) -> None:
    engine_db = create_database_engine(platform.database_url)
    row = Deployment(
        name=name,
        base="org/model",
        engine=EngineKind.hf,
        queue=Queue.cpu,
        status=DeploymentStatus.ready,
        address=engine.url.removesuffix("/v1"),
        ready_at=utc_now(),
    )
    with Session(engine_db) as session, session.begin():
        session.add(row)
    engine_db.dispose()


def put_alias(platform: Platform, name: str, **shares: float) -> None:
    targets = [{"deployment": deployment, "share": share} for deployment, share in shares.items()]
    response = platform.client.put(f"/api/v1/aliases/{name}", json={"targets": targets})
    assert response.is_success, response.text


def promote(platform: Platform, alias: str, conditions: dict[str, Any], **fields: Any) -> str:
    stage = {"stage": "promote", "alias": alias, "deployment": "next", "conditions": conditions}
    defaults = {"steps": STEPS, "min_seconds": 0.5, "min_requests": 10, "max_seconds": 600}
    return platform.submit({**stage, **defaults, **fields})


@contextmanager
def traffic(platform: Platform, model: str, *gateways: str, stream: bool = False) -> Iterator[list[int]]:
    """Send chats to the API and other gateways while the block lasts; yields their statuses."""
    statuses: list[int] = []
    done = threading.Event()
    body = {"model": model, "messages": QUESTION, "max_tokens": 8, "stream": stream}

    def send(url: str) -> None:
        with httpx2.Client(base_url=url, timeout=120) as client:
            while not done.wait(PAUSE_SECONDS):
                statuses.append(client.post("/v1/chat/completions", json=body).status_code)

    urls = [platform.base_url, *gateways] * CLIENTS
    threads = [threading.Thread(target=send, args=[url]) for url in urls]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        done.set()
        for thread in threads:
            thread.join()


def shares_of(platform: Platform, alias: str) -> dict[str, float]:
    targets = platform.get(f"/aliases/{alias}")["targets"]
    return {target["deployment"]: round(target["share"], 6) for target in targets}


def history_of(platform: Platform, alias: str) -> list[dict[str, Any]]:
    """Return the versions of an alias, oldest first."""
    versions: list[dict[str, Any]] = platform.get(f"/aliases/{alias}/history")["items"][::-1]
    return versions


def wait_for_step(platform: Platform, job: str, step: int) -> None:
    def has_begun() -> bool:
        run = platform.run(job)
        events = platform.events(run["id"], "promotion")
        return any(event["data"]["step"] == step for event in events)

    wait_until(has_begun, 120, lambda: f"no step {step}: {platform.job(job)}")


@pytest.fixture(scope="module")
def gateway(platform: Platform) -> str:
    """Return the URL of a standalone gateway with two processes."""
    port = free_port()
    command = ["-m", "serving.gateway", "--api", platform.base_url, "--workers", "2", "--port", str(port)]
    platform.start(command, "gateway")
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        with suppress(httpx2.TransportError):
            return httpx2.get(f"{url}/health").status_code == 200
        return False

    wait_until(is_up, 120, "the gateway does not start")
    return url


def test_an_alias_moves_by_steps_while_the_conditions_hold(
    platform: Platform, alias: str, engines: Engines, gateway: str
) -> None:
    with traffic(platform, alias, gateway) as statuses:
        job = platform.wait_until_finished(promote(platform, alias, ERRORS))
    run = job["runs"][0]
    assert (job["status"], set(statuses)) == ("succeeded", {200}), job
    assert shares_of(platform, alias) == {"next": 1}
    versions = history_of(platform, alias)
    assert [target["share"] for version in versions[1:] for target in version["targets"][-1:]] == [
        0.3,
        0.6,
        1,
    ]
    assert {version["changed_by"] for version in versions[1:]} == {run["id"]}
    steps = run["result"]["steps"]
    assert [step["share"] for step in steps] == [0.3, 0.6, 1.0]
    for step in steps:
        assert step["requests"] >= N_NEEDED and step["failed"] == 0
        assert {each["state"] for each in step["conditions"]} == {"holds"}


def test_every_request_is_counted_once_over_all_gateways(
    platform: Platform, alias: str, engines: Engines, gateway: str
) -> None:
    job_id = promote(platform, alias, ERRORS, min_requests=100_000)
    wait_for_step(platform, job_id, 1)
    with traffic(platform, alias, gateway):
        wait_until(lambda: len(read_counts(platform, alias)) >= 2, 120, "the gateways report nothing")
    # Each request to `next` comes from a gateway that has the version of the step.
    wait_until(
        lambda: sum(read_counts(platform, alias)) == len(engines.following.bodies),
        60,
        lambda: f"{read_counts(platform, alias)} of {len(engines.following.bodies)} requests are counted",
    )
    platform.post(f"/jobs/{job_id}/cancel")
    assert platform.wait_until_finished(job_id)["status"] == "cancelled"
    assert shares_of(platform, alias) == {"stable": 1}


def read_counts(platform: Platform, alias: str) -> list[int]:
    """Return how many requests to `next` each gateway process has reported."""
    deployment_id = platform.get("/deployments", name="next")["items"][0]["id"]
    rows = select(AliasTraffic).where(
        AliasTraffic.alias == alias, AliasTraffic.deployment_id == deployment_id
    )
    engine = create_database_engine(platform.database_url)
    with Session(engine) as session:
        counts = [row.counts["succeeded"] for row in session.exec(rows)]
    engine.dispose()
    return counts


def test_an_error_rate_above_its_bound_rolls_back_before_its_time_is_up(
    platform: Platform, alias: str, engines: Engines
) -> None:
    engines.fail_every(2)
    with traffic(platform, alias):
        job = platform.wait_until_finished(promote(platform, alias, ERRORS, max_seconds=3600))
    run = job["runs"][0]
    error = run["error"]
    assert (job["status"], error["code"]) == ("failed", "promotion_rolled_back")
    assert "max_error_rate: " in error["message"] and "at most 0.2 may fail" in error["message"]
    [assessment] = error["details"]["conditions"]
    assert assessment["value"] > 0.3 and assessment["bound"] == 0.2 and assessment["limits_95"][0] > 0.2
    assert shares_of(platform, alias) == {"stable": 1}
    assert history_of(platform, alias)[-1]["restored_version"] == 1
    last = platform.events(run["id"], "promotion")[-1]["data"]
    assert (last["promotion"], last["restored_version"]) == ("rolled_back", 1)


def test_a_slow_model_is_rolled_back(platform: Platform, alias: str, engines: Engines) -> None:
    engines.delay(0.3)
    with traffic(platform, alias):
        job = platform.wait_until_finished(promote(platform, alias, {"max_p95_seconds": 0.25}))
    error = job["runs"][0]["error"]
    assert error["code"] == "promotion_rolled_back" and "took longer than 0.25 s" in error["message"]
    assert shares_of(platform, alias) == {"stable": 1}


def test_a_model_that_a_judge_finds_worse_is_rolled_back(
    platform: Platform, alias: str, engines: Engines
) -> None:
    engines.following.respond = lambda body: (200, "a longer response, which this judge likes less")
    condition = {
        "judge": {"endpoint": "judge", "model": "any"},
        "rubric": "Brevity.",
        "dataset": "test",
        "max_rows": 8,
        "min_preference": 0.4,
    }
    with traffic(platform, alias):
        job = platform.wait_until_finished(promote(platform, alias, {**ERRORS, "judge": condition}))
    run = job["runs"][0]
    assert run["error"]["code"] == "promotion_rolled_back", run["error"]
    assert "mean preference for the new deployment is 0 on 8 rows" in run["error"]["message"]
    assert shares_of(platform, alias) == {"stable": 1}
    files = {file["name"] for file in platform.get(f"/runs/{run['id']}/files")["items"]}
    assert "judge_preference.judgements.jsonl" in files


def test_too_few_requests_never_promote(platform: Platform, alias: str) -> None:
    job = platform.wait_until_finished(promote(platform, alias, ERRORS, max_seconds=2))
    error = job["runs"][0]["error"]
    assert error["code"] == "promotion_undecided"
    assert "0 of the 10 requests that the step needs were served" in error["message"]
    assert shares_of(platform, alias) == {"stable": 1}


def test_a_step_that_may_advance_undecided_warns(platform: Platform, alias: str) -> None:
    options = {"max_seconds": 1, "on_undecided": "advance"}
    job = platform.wait_until_finished(promote(platform, alias, ERRORS, **options))
    assert (job["status"], shares_of(platform, alias)) == ("succeeded", {"next": 1})
    warnings = platform.events(job["runs"][0]["id"], "warning")
    assert [warning["data"]["code"] for warning in warnings].count("promotion_undecided") == 3


def test_a_person_who_moves_the_alias_wins(platform: Platform, alias: str) -> None:
    job_id = promote(platform, alias, ERRORS)
    wait_for_step(platform, job_id, 1)
    put_alias(platform, alias, stable=0.5, next=0.5)
    error = platform.wait_until_finished(job_id)["runs"][0]["error"]
    assert error["code"] == "alias_moved" and "has version 3" in error["message"]
    assert shares_of(platform, alias) == {"stable": 0.5, "next": 0.5}


def test_a_paused_promotion_stays_at_its_step_and_counts_until_it_continues(
    platform: Platform, alias: str
) -> None:
    job_id = promote(platform, alias, ERRORS)
    wait_for_step(platform, job_id, 1)
    platform.post(f"/jobs/{job_id}/pause")
    wait_until(lambda: platform.job(job_id)["status"] == "paused", 120, "it does not pause")
    with traffic(platform, alias) as statuses:
        wait_until(lambda: len(statuses) > 8 * N_NEEDED, 120, "no traffic")
    assert shares_of(platform, alias) == {"stable": 0.7, "next": 0.3}
    platform.post(f"/jobs/{job_id}/resume")
    # What was served meanwhile counts: the step passes without further traffic.
    wait_for_step(platform, job_id, 2)
    with traffic(platform, alias):
        job = platform.wait_until_finished(job_id)
    assert (job["status"], shares_of(platform, alias)) == ("succeeded", {"next": 1}), job
    assert [version["targets"][-1]["share"] for version in history_of(platform, alias)] == [1, 0.3, 0.6, 1]


def test_a_killed_worker_costs_no_step_and_moves_nothing_twice(platform: Platform, alias: str) -> None:
    [worker] = [each for each in platform.processes if is_worker(each) and each.poll() is None]
    job_id = promote(platform, alias, ERRORS)
    wait_for_step(platform, job_id, 1)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert shares_of(platform, alias) == {"stable": 0.7, "next": 0.3}
    platform.start_worker()
    with traffic(platform, alias):
        job = platform.wait_until_finished(job_id)
    assert (job["status"], job["runs"][0]["attempt"]) == ("succeeded", 2), job
    assert [version["targets"][-1]["share"] for version in history_of(platform, alias)] == [1, 0.3, 0.6, 1]


def is_worker(process: subprocess.Popen[bytes]) -> bool:
    return isinstance(process.args, list) and "workers" in process.args


@pytest.mark.slow
def test_a_worker_killed_while_the_judge_works_pays_for_no_judgement_twice(
    platform: Platform, alias: str, judge: JudgeServer
) -> None:
    decide = judge.respond

    def respond(body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.3)
        return decide(body)

    judge.respond = respond
    judge.bodies.clear()
    condition = {
        "judge": {"endpoint": "judge", "model": "any"},
        "rubric": "Brevity.",
        "dataset": "test",
        "max_rows": 24,
        "min_preference": 0.4,
    }
    [worker] = [each for each in platform.processes if is_worker(each) and each.poll() is None]
    job_id = promote(platform, alias, {**ERRORS, "judge": condition})
    wait_until(lambda: len(judge.bodies) > 16, 120, "the judge is not asked")
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    platform.start_worker()
    with traffic(platform, alias):
        job = platform.wait_until_finished(job_id)
    judge.respond = decide
    run = job["runs"][0]
    errors = [
        each["data"]["error"] for each in platform.events(run["id"], "status") if each["data"].get("error")
    ]
    # A busy machine may lose a lease as well.
    assert job["status"] == "succeeded" and run["attempt"] >= 2, errors
    assert run["result"]["judgement"]["value"] == 0.5
    # 24 rows in both orders; at most the requests that were open when an attempt ended are repeated.
    assert 48 <= len(judge.bodies) <= 48 + 8 * (run["attempt"] - 1), errors


@pytest.mark.slow
def test_a_tuned_model_is_promoted_on_real_engines_while_its_worker_is_killed(
    embedded: Platform, adapters: dict[str, Path]
) -> None:
    embedded.start_worker()
    # The engines are on another worker than the promotion: their death would be a failure of the new model.
    worker = embedded.start_worker("promoter", queue="mlx", **SHORT_LEASE)
    embedded.deploy("stable")
    model = embedded.register_adapter("next", adapters["a"])
    put_alias(embedded, "prod", stable=1)
    deploy = {"stage": "deploy", "model": model, "deployment": "next"}
    conditions = {**ERRORS, "max_p95_seconds": 60, "max_p95_first_token_seconds": 60}
    stage = {"stage": "promote", "alias": "prod", "steps": STEPS, "conditions": conditions, "min_seconds": 1}
    with traffic(embedded, "prod", stream=True) as statuses:
        limits = {"min_requests": 10, "max_seconds": 300, "queue": "mlx"}
        job_id = embedded.submit(deploy, {**stage, **limits})
        wait_until(lambda: shares_of(embedded, "prod").get("next") == 0.6, 240, f"{embedded.job(job_id)}")
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        embedded.start_worker("promoter", queue="mlx")
        job = embedded.wait_until_finished(job_id, 400)
    result = job["runs"][1]["result"]
    assert job["status"] == "succeeded", job["runs"][1]["error"]
    assert shares_of(embedded, "prod") == {"next": 1} and set(statuses) == {200}
    assert [step["requests"] >= 89 for step in result["steps"]] == [True] * 3
