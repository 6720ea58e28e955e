"""The command line against the service as a process: what it prints, and how it exits.

Method: call `main` as the script does, against a service without a worker.
"""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from app.client.commands.program import main
from tests.integration.app.test_server import environment, serving

Run = Callable[..., tuple[int, str, str]]
JOB = """
name: ${NAME:-prepared}
labels: {team: "${TEAM}", commit: "${COMMIT:-12e3}"}
stages:
  - {stage: prepare, dataset: data/rows.jsonl, split: {test: 1}}
"""
FAULTY = "question,answer\nWhat is 1 + 1?,2\n,3\nWhat is 2 + 2?,4,5\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(folder, "--no-worker") as (_, address):
        yield address


@pytest.fixture
def tunesmith(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Return a function that runs a command and returns its exit code, output and errors."""
    monkeypatch.setenv("TUNESMITH_URL", url)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_text('{"prompt": "1", "completion": "2"}\n' * 2)
    (tmp_path / "job.yaml").write_text(JOB)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_a_service_without_a_job_says_how_to_start_one(tunesmith: Run) -> None:
    code, _, errors = tunesmith("job", "last")
    assert code == 2 and "There is no job yet" in errors and "tunesmith train" in errors


def test_a_check_finds_without_a_service_what_the_service_finds(tunesmith: Run, tmp_path: Path) -> None:
    (tmp_path / "faulty.csv").write_text(FAULTY)
    checked, pushed = (
        tunesmith("data", "check", "faulty.csv", "--json"),
        tunesmith("data", "push", "faulty.csv", "--json"),
    )
    report = json.loads(checked[1])["faulty.csv"]
    assert checked[0] == pushed[0] == 1 and report["fault_count"] == 2
    assert report == json.loads(pushed[1])["report"]
    (tmp_path / "one.csv").write_text("prompt,completion\n,3\n")
    assert "1 row, 1 fault, 0 warnings" in tunesmith("data", "check", "one.csv")[1]
    said = tunesmith("data", "push", "faulty.csv")[2]
    assert "No job can use this file" in said and "tored as" not in said
    stored = json.loads(tunesmith("get", "data", "faulty", "--json")[1])
    assert stored["dataset"] == "faulty" and Path(stored["path"]).is_file()
    _, text, _ = tunesmith("data", "check", "faulty.csv")
    assert "fault: row 2 (line 3 of the file): `question` is empty" in text and "\x1b" not in text


@pytest.mark.parametrize(
    "command",
    [
        *("status", "jobs", "models", "deployments", "aliases", "aliases prod", "hosts", "storage"),
        *("data list", "top"),
    ],
)
def test_what_is_listed_can_be_read_as_json(tunesmith: Run, command: str) -> None:
    code, output, errors = tunesmith(*command.split(), "--json")
    assert code == 0 and errors == ""
    json.loads(output)
    assert tunesmith(*command.split())[0] == 0


def test_a_spec_is_expanded_uploads_its_files_and_starts_one_job_for_a_key(
    tunesmith: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "TEAM" in tunesmith("apply", "job.yaml")[2] and tunesmith("apply", "job.yaml")[0] == 2
    monkeypatch.setenv("TEAM", "maths")
    code, plan, _ = tunesmith("apply", "job.yaml", "--dry-run", "--json")
    assert code == 0 and json.loads(plan)["labels"] == {"team": "maths", "commit": "12e3"}
    first, second = (tunesmith("apply", "job.yaml", "--detach", "--key", "once")[1] for _ in "ab")
    assert first == second and first.startswith("job_")
    listed = json.loads(tunesmith("jobs", "--label", "team=maths", "--json")[1])
    assert [job["id"] for job in listed] == [first.strip()]


def test_jobs_are_acted_on_by_name_and_their_end_is_the_exit_code(tunesmith: Run) -> None:
    train = ("train", "data/rows.jsonl", "--base", "org/none", "--name", "tried", "--set", "max_steps=3")
    assert tunesmith(*train, "--label", "a=b", "--detach")[0] == 0
    assert tunesmith("wait", "tried", "--timeout", "0.1")[0] == 4
    assert tunesmith("pause", "tried")[1].endswith("is paused\n")
    assert tunesmith("resume", "last")[1].endswith("is queued\n")
    assert tunesmith("cancel", "tried")[1].endswith("is cancelled\n")
    code, _, errors = tunesmith("logs", "-f", "tried")
    assert code == 1 and "was cancelled" in errors
    job = json.loads(tunesmith("job", "tried", "--json")[1])
    assert job["spec"]["stages"][0]["max_steps"] == 3 and job["labels"] == {"a": "b"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["job", "missing"], 2, "tunesmith jobs"),
        (["get", "file", "run_none", "--json"], 2, "run_none"),
        (["train", "no.jsonl", "--base", "starter"], 2, "There is no file no.jsonl"),
        (["train", "rows", "--base", "starter", "--set", "rate"], 2, "--set FIELD=VALUE"),
        (["--url", "http://127.0.0.1:1", "jobs"], 3, "tunesmith up"),
        (["jobs", "--nothing"], 2, "--nothing"),
    ],
)
def test_an_error_has_its_exit_code_and_a_remedy(
    tunesmith: Run, arguments: list[str], code: int, message: str
) -> None:
    found = tunesmith(*arguments)
    assert (found[0], found[1]) == (code, "") and message in found[2] and "Traceback" not in found[2]


def test_the_fields_of_a_stage_are_printed(tunesmith: Run) -> None:
    code, text, _ = tunesmith("stage", "sft")
    assert code == 0 and re.search(r"batch_size +integer ≥ 1 +16 +Rows per optimizer step", text)
    assert "properties" in json.loads(tunesmith("stage", "sft", "--json")[1])
    assert "rank" in tunesmith("stage", "sft", "tuning")[1] and "Kahneman" in tunesmith("stage")[1]
    code, _, errors = tunesmith("stage", "train")
    assert code == 2 and "Expected one of prepare" in errors


def test_a_preflight_is_started_and_can_be_left(tunesmith: Run, tmp_path: Path) -> None:
    stage = "{stage: sft, base: org/none, dataset: data/rows.jsonl, tuning: {rank: 8}}"
    (tmp_path / "sft.yaml").write_text(f"name: checked\nstages: [{stage}]\n")
    job = tunesmith("preflight", "sft.yaml", "--probe-steps", "5", "--detach")[1].strip()
    assert json.loads(tunesmith("job", job, "--json")[1])["spec"]["stages"][0]["probe_steps"] == 5
    assert "tunesmith preflight" in tunesmith("apply", "sft.yaml", "--dry-run")[2]
    (tmp_path / "sft.yaml").write_text(f"stages: [{stage.replace('{rank: 8}', 'lora')}]\n")
    code, _, errors = tunesmith("apply", "sft.yaml")
    assert code == 2 and 'write {"method": "lora"}' in errors


@pytest.mark.parametrize("value", ["${TUNESMITH_API_KEY}", "${KEY}", "a ${HF_TOKEN:-none}"])
def test_a_spec_takes_no_secret_from_the_environment(
    tunesmith: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TUNESMITH_API_KEY", "ts_0123456789abcdef0123")
    monkeypatch.setenv("KEY", "sk-0123456789abcdef0123456789")
    for spec in (f'name: "{value}"\nstages: []\n', f'stages: [{{stage: sft, base: "{value}"}}]\n'):
        (tmp_path / "secret.yaml").write_text(spec)
        code, output, errors = tunesmith("apply", "secret.yaml", "--dry-run")
        assert (code, output) == (2, "") and "contains a secret" in errors and "0123456789" not in errors


def test_ctrl_c_leaves_the_job_and_names_the_command_that_follows_it(
    tunesmith: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tunesmith("train", "data/rows.jsonl", "--base", "org/none", "--detach")[1].strip()
    interrupt = threading.Timer(0.3, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])

    def interrupt_later(text: str) -> None:
        # Once the first event has arrived: an earlier signal would end the tests.
        if text.endswith("is queued"):
            interrupt.start()

    monkeypatch.setattr("app.client.commands.following.note", interrupt_later)
    code, _, errors = tunesmith("logs", "-f", job)
    assert code == 130 and f"tunesmith logs -f {job}" in errors
    assert json.loads(tunesmith("job", job, "--json")[1])["status"] == "queued"


def test_the_version_is_printed(tunesmith: Run) -> None:
    code, output, _ = tunesmith("--version")
    assert (code, output.strip()) == (0, version("tunesmith"))


def test_a_login_is_stored_and_used(tunesmith: Run, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESMITH_URL")
    monkeypatch.setenv("TUNESMITH_API_KEY", "")
    stored: Any = json.loads(tunesmith("login", f"{url}/", "--json")[1])
    assert stored["url"] == url and stored["scopes"] == ["admin"] and Path(stored["path"]).is_file()
    monkeypatch.delenv("TUNESMITH_API_KEY")
    status: Any = json.loads(tunesmith("status", "--json")[1])
    assert status["url"] == url and status["caller"]["scopes"] == ["admin"]
    forgotten: Any = json.loads(tunesmith("logout", "--json")[1])
    assert forgotten == {"url": url, "removed": False}


def test_the_commands_of_operators_are_reached_through_it(folder: Path, url: str) -> None:
    command = [sys.executable, "-m", "tunesmith", "keys", "revoke", "key_none"]
    revoked = subprocess.run(command, env=environment(folder), cwd=folder, capture_output=True, text=True)
    assert revoked.returncode == 1 and "There is no" in revoked.stderr, revoked.stderr
