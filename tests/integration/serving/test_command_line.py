"""`python -m serving` in the terminal and over files, with a real engine as its child."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from serving.chat_cli import ChatSession
from tests.integration.serving.conftest import ENVIRONMENT, WAIT_SECONDS, Server, wait_for
from tests.integration.serving.make_tiny import ALPHA_TEXT, BASE_SAYS


def serve(*arguments: Any, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving", *map(str, arguments)]
    return subprocess.run(
        command, env=ENVIRONMENT, input=typed, capture_output=True, text=True, timeout=240, check=False
    )


def rows(path: Path, questions: list[str]) -> Path:
    path.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_conversation_is_streamed_and_saved(tiny: Path, tmp_path: Path) -> None:
    typed = f"hello\n/set temperature warm\n/nothing\n/save {tmp_path / 'chat.jsonl'}\n/quit\n"
    done = serve(
        *("--model", tiny / "base", "--adapter", f"alpha={tiny / 'alpha'}", "--interactive"),
        *("--temperature", 0),
        typed=typed,
    )
    assert done.returncode == 0, done.stderr
    assert ALPHA_TEXT in done.stdout
    assert "temperature is 'warm', but must be a number." in done.stdout
    assert "Unknown command /nothing; /help lists the commands." in done.stdout
    question, completion = lines(tmp_path / "chat.jsonl")[0]["messages"]
    assert (question["content"], completion["content"]) == ("hello", ALPHA_TEXT)


def test_commands_change_the_conversation(engine: Server, capsys: pytest.CaptureFixture[str]) -> None:
    session = ChatSession(engine.url, "base", settings={"temperature": 0})
    for line in ("count", "/retry", "hello", "/undo"):
        session.handle(line)
    assert [turn["content"] for turn in session.turns] == ["count", BASE_SAYS]
    for line in ("/clear", "/model alpha", "hello"):
        session.handle(line)
    assert session.turns[1]["content"] == ALPHA_TEXT
    session.handle("/system Be brief.")
    assert session.messages == [{"role": "system", "content": "Be brief."}]
    session.handle("/set max_tokens 0")
    with pytest.raises(ValueError, match="max_tokens"):
        session.handle("hello")
    assert session.turns == []
    session.client.close()
    assert "A new conversation begins." in capsys.readouterr().out


def test_every_row_gets_its_completion_in_order(tiny: Path, tmp_path: Path) -> None:
    questions = ["count", "say alpha", "x" * 9000, "hello"]
    output = tmp_path / "predictions.jsonl"
    done = serve(
        *("--model", tiny / "base", "--input", rows(tmp_path / "rows.jsonl", questions), "--output", output),
        *("--max-tokens", 90),
    )
    assert done.returncode == 0, done.stderr
    assert [line["prediction"] for line in lines(output)] == [BASE_SAYS, ALPHA_TEXT, None, BASE_SAYS]
    assert [line["row"] for line in lines(output)] == [1, 2, 3, 4]
    assert "context" in lines(output)[2]["error"]
    assert "4 of 4 rows completed" in done.stderr


def test_a_stopped_batch_resumes(tiny: Path, tmp_path: Path) -> None:
    source, output = rows(tmp_path / "rows.jsonl", ["count"] * 240), tmp_path / "predictions.jsonl"
    arguments = ["--model", tiny / "base", "--input", source, "--output", output, "--max-tokens", 24]
    command = [sys.executable, "-m", "serving", *map(str, arguments)]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE) as first:
        wait_for(lambda: output.exists() and output.read_bytes().count(b"\n") > 3)
        first.send_signal(signal.SIGINT)
        assert b"the same command resumes here" in first.communicate(timeout=WAIT_SECONDS)[1]
    kept = output.read_bytes()
    assert 3 < kept.count(b"\n") < 240
    output.write_bytes(kept + b'{"row": torn')
    assert serve(*arguments).returncode == 0
    assert output.read_bytes().startswith(kept)
    assert [line["row"] for line in lines(output)] == list(range(1, 241))


def test_a_batch_loads_no_ml_package_itself() -> None:
    program = "import sys, trainers.generate; print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout == "set()\n"


def test_the_output_of_another_batch_is_not_continued(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictions.jsonl"
    kept = {"row": 1, "prompt": [{"role": "user", "content": "another question"}], "prediction": "x"}
    output.write_text(json.dumps(kept) + "\n")
    source = rows(tmp_path / "rows.jsonl", ["count", "hello"])
    done = serve("--model", tiny / "base", "--input", source, "--output", output)
    assert done.returncode == 1
    assert "the prompt of row 1 is different" in done.stderr
    assert lines(output) == [kept]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere", "--interactive"], "does not exist"),
        (["--model", "/nowhere", "--input", "rows.jsonl"], "needs both --input and --output"),
        (["--model", "m", "--program", "/no/engine", "--interactive"], "/no/engine: No such file"),
        (["--model", "/nowhere", "--input", "/no/rows", "--output", "out"], "/no/rows does not exist"),
    ],
)
def test_what_cannot_be_served_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    done = serve(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_the_engine_exits_with_the_program_that_started_it(tiny: Path, tmp_path: Path, end: str) -> None:
    command = [sys.executable, "-m", "serving", "--model", str(tiny / "base"), "--interactive"]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdout is not None and session.stdin is not None
        assert b"is ready" in session.stdout.readline()
        engine = _children(session.pid)
        assert engine
        if end == "closed":
            session.stdin.close()
            assert session.wait(WAIT_SECONDS) == 0
        else:
            session.kill()
    deadline = time.monotonic() + WAIT_SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in engine):
        assert time.monotonic() < deadline, "the engine has outlived the program"
        time.sleep(0.05)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
