"""Files of a run directory are validated line by line."""

import json
from pathlib import Path

from app.tables import EventType
from workers.runs import run_events as appended
from workers.runs.follow import RunDirFollower

NOW = "2026-01-01T00:00:00+00:00"


def metrics(step: object, **values: object) -> str:
    return json.dumps({"type": "metrics", "time": NOW, "step": step, "total_steps": 9, "values": values})


def test_invalid_lines_are_skipped(tmp_path: Path) -> None:
    invalid = [
        "no JSON", "[]", "{}", '{"type": "metrics"}', "[" * 100_000,
        metrics("one", loss=1), metrics(2**40, loss=1), metrics(-1, loss=1), metrics(1, loss="much"),
        metrics(1, loss=float("inf")), metrics(1, **{"nul\0": 1}),
        metrics(1, **{str(i): i for i in range(999)}),
        '{"type": "metrics", "step": 3, "tot',
    ]  # fmt: skip
    lines = [*invalid[:-1], metrics(2, loss=0.5, grad_norm=None), invalid[-1]]
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    (event,) = RunDirFollower(tmp_path).poll(to_end=True).events
    assert (event.type, event.step, event.data) == (EventType.metrics, 2, {"loss": 0.5, "grad_norm": None})


def test_a_line_separator_within_a_string_does_not_split_an_event(tmp_path: Path) -> None:
    warning = {"type": "warning", "time": NOW, "code": "odd", "message": "one\u2028two"}
    (tmp_path / "events.jsonl").write_text(json.dumps(warning, ensure_ascii=False) + "\n")
    assert RunDirFollower(tmp_path).poll().events[0].data["message"] == "one\u2028two"


def test_a_resumed_event_with_an_unknown_exactness_is_skipped(tmp_path: Path) -> None:
    lines = [
        {"type": "resumed", "time": NOW, "step": 7, "exactness": exactness, "reasons": ["so"]}
        for exactness in ("nearly", "approximate")
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (event,) = RunDirFollower(tmp_path).poll().events
    expected = {"exactness": "approximate", "reasons": ["so"]}
    assert (event.type, event.step, event.data) == (EventType.resumed, 7, expected)


def test_more_events_than_one_poll_reads_follow_with_the_next_polls(tmp_path: Path) -> None:
    lines = [metrics(step, loss=1.0) for step in range(appended.MAX_READ_BYTES // 80)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    follower = RunDirFollower(tmp_path)
    reported = [event.step for _ in range(3) for event in follower.poll().events]
    assert reported == list(range(len(lines)))


def test_of_many_log_lines_one_event_contains_the_newest(tmp_path: Path) -> None:
    with (tmp_path / "log.txt").open("w") as log:
        log.writelines(f"{number} {'x' * 5000}\n" for number in range(20_000))
    (event,) = RunDirFollower(tmp_path).poll().events
    assert event.data["lines"][-1].startswith("19999 x")
    assert "earlier lines are in the whole log" in event.data["lines"][0]
    assert len(json.dumps(event.data)) < 300_000


def test_checkpoints_outside_the_run_directory_and_repeated_ones_are_skipped(tmp_path: Path) -> None:
    follower = RunDirFollower(tmp_path)
    reported = [
        (1, "checkpoints/a"),
        (2, "/etc"),
        (3, "checkpoints/../../up"),
        (1, "checkpoints/a"),
        (4, "model"),
    ]
    common = {"size_bytes": 1, "manifest_sha256": "0" * 64, "time": NOW}
    lines = [{"step": step, "path": path, **common} for step, path in reported]
    (tmp_path / "checkpoints.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [checkpoint.step for checkpoint in follower.poll().checkpoints] == [1]


def sample(step: int, completion: str, **fields: object) -> str:
    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?"}]
    return json.dumps({"step": step, "prompt": prompt, "completion": completion, **fields}) + "\n"


def test_the_samples_of_the_newest_step_are_an_event_at_most_twice_a_minute(tmp_path: Path) -> None:
    path, follower = tmp_path / "samples.jsonl", RunDirFollower(tmp_path)
    rewards = {"reference": "4", "rewards": {"exact": 1.0}, "total": 1.0}
    path.write_text(sample(1, "5") + sample(2, "4", **rewards) + sample(2, "x" * 9000))
    (event,) = follower.poll().events
    first, second = event.data["samples"]
    assert (event.type, event.step) == (EventType.samples, 2)
    assert first == {"prompt": "2 + 2?", "completion": "4", **rewards} and len(second["completion"]) == 2000
    with path.open("a") as file:
        file.write(sample(3, "four"))
    assert follower.poll().events == []
    assert follower.poll(to_end=True).events[0].step == 3


def test_invalid_samples_are_skipped(tmp_path: Path) -> None:
    wrong = [sample(-1, "a"), sample(2**31, "a"), sample(1, "a", rewards={"nul\0": 1}), "{\n", "[1]\n"]
    (tmp_path / "samples.jsonl").write_text("".join(wrong) + sample(1, "nul\0", rewards={"r": None}))
    (event,) = RunDirFollower(tmp_path).poll(to_end=True).events
    assert [each["completion"] for each in event.data["samples"]] == ["nul\ufffd"]
