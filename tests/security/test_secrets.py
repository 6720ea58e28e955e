"""No secret of the operator reaches a place that a key with the scope `read` shows.

Attacks: canaries in the worker's environment, and a program that prints them, with and without a line end,
into its log, events, error and result.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.storage.database import get_engine
from app.tables import RunStatus
from tests.integration.workers.conftest import execute_next, row, submit, worker
from tests.security.regression import Regression, unchanged
from trainers.runtime.errors import TunesmithError
from trainers.runtime.redaction import _secret_values
from workers.hosts.worker import WorkerContext

__all__ = ["submit", "worker"]

CANARIES = {
    "HF_TOKEN": "hf_canaryhub0123456789abcdef",
    "OPENAI_API_KEY": "sk-proj-canary0123456789abcdef",
    "WANDB_API_KEY": "canary-wandb-0123456789",
    "MLFLOW_TRACKING_PASSWORD": "canary mlflow password",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+secret/key",
    "HTTPS_PROXY": "http://me:canaryproxypassword@127.0.0.1:1",
}
# No program gets any of them, so it would have to find them elsewhere.
LEAK = f"""
secrets = {list(CANARIES.values())!r} + ["ts_" + "canary" * 5, "Bearer canarybearertoken"]
write("log.txt", "token " + " ".join(secrets) + "\\n" + secrets[0], "a")
write("engine.log", "\\n".join(secrets))
line = {{"type": "warning", "time": NOW, "code": "leak", "message": " ".join(secrets)}}
write("events.jsonl", json.dumps(line) + "\\n", "a")
"""
FAIL = (
    'write("error.json", json.dumps({"code": "config_invalid", "message": " ".join(secrets)}))\nsys.exit(1)\n'
)


@pytest.fixture(autouse=True)
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    _secret_values.cache_clear()
    yield
    _secret_values.cache_clear()


def read_everything(folder: Path) -> str:
    """Return all rows of the database and all published files."""
    with get_engine().connect() as connection:
        dump = connection.connection.dbapi_connection.iterdump()  # type: ignore[union-attr]
        rows = "\n".join(dump)
    files = [path.read_text(errors="replace") for path in (folder / "artifacts").rglob("*") if path.is_file()]
    return "\n".join([rows, *files])


@pytest.mark.parametrize("end", ["succeed(note=secrets)\n", FAIL, "os.kill(os.getpid(), 9)\n"])
def test_a_program_that_prints_secrets_publishes_none(
    worker: WorkerContext, submit: Callable[..., str], tmp_path: Path, end: str
) -> None:
    run_id = submit(LEAK + end)
    assert execute_next(worker)
    assert row(run_id).attempt == 1
    everything = read_everything(tmp_path)
    assert "token ***" in everything or "token hf_***" in everything
    assert "canary" not in everything


def test_no_response_contains_a_secret(
    client: TestClient, worker: WorkerContext, submit: Callable[..., str]
) -> None:
    run_id = submit(LEAK + FAIL)
    execute_next(worker)
    assert row(run_id).status is RunStatus.failed
    paths = ["", "/events", "/logs", "/files/log.txt", "/files/events.jsonl", "/files/error.json"]
    answers = [client.get(f"/api/v1/runs/{run_id}{path}") for path in paths]
    assert {answer.status_code for answer in answers} == {200}
    assert "canary" not in "".join(answer.text for answer in answers)
    assert "canary" not in client.get("/metrics").text + client.get("/api/v1/workers").text


def test_a_program_gets_no_secret_as_an_argument_or_in_its_environment(
    worker: WorkerContext, submit: Callable[..., str], tmp_path: Path
) -> None:
    found = tmp_path / "found.txt"
    submit(f"pathlib.Path({str(found)!r}).write_text(repr([sys.argv, dict(os.environ)]))\nsucceed()\n")
    execute_next(worker)
    arguments, environment = ast.literal_eval(found.read_text())
    assert "canary" not in str(arguments) and "canary" not in str(environment)


@pytest.mark.parametrize("secret", CANARIES.values())
def test_an_error_that_quotes_a_secret_is_shown_without_it(secret: str) -> None:
    error = TunesmithError(f"cannot reach {secret}", f"try {secret}")
    assert "canary" not in str(error.as_dict())


REGRESSIONS = [
    Regression(
        "events and logs are stored as they are",
        "workers.runs.run_events:redact",
        unchanged,
        "test_a_program_that_prints_secrets_publishes_none",
    ),
    Regression(
        "errors are stored as they are",
        "trainers.runtime.errors:redact",
        unchanged,
        "test_an_error_that_quotes_a_secret_is_shown_without_it",
    ),
    Regression(
        "files are published as they are",
        "workers.runs.complete:redact_file",
        unchanged,
        "test_no_response_contains_a_secret",
    ),
]
