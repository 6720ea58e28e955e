"""The stage `lm_eval`: engines equal to lm-eval's own backend row by row, resumption, and its errors."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.integration.serving.conftest import Server, serving
from tests.integration.trainers.conftest import Programs, wait_for
from tests.integration.trainers.stages import run_stage
from trainers.configs import EvaluationFolder, GateBasis, GateConfig
from trainers.configs.stages.harness.measures import list_measures
from trainers.configs.stages.harness.tasks import TaskDefinition
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.evaluation.results import EvaluationResult
from trainers.gate.decision import decide
from trainers.lm_eval.outcome import list_rows
from trainers.lm_eval.stock_tasks import TaskUnknown
from trainers.lm_eval.tasks import TaskRefused
from trainers.modeling.hub import HubUnreachable
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ConfigInvalid, DatasetInvalid, EngineFailed

WriteRows = Callable[[list[dict[str, Any]]], str]
SUMS = {
    "task": "sums",
    "test_split": "test",
    "training_split": "train",
    "num_fewshot": 2,
    "doc_to_text": "{{ question }}",
    "doc_to_target": "{{ answer }}",
    "metric_list": [{"metric": "exact_match", "regexes_to_ignore": ["(?s).*#### "]}],
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 24},
    "filter_list": [
        {"name": name, "filter": [{"function": "regex", **options}, {"function": "take_first"}]}
        for name, options in (
            ("strict", {"regex_pattern": "#### ([0-9]+)"}),
            ("flexible", {"regex_pattern": "([0-9]+)", "group_select": -1}),
        )
    ],
}
N_ROWS = 12


class CountingEngine(BaseHTTPRequestHandler):
    """Counts the requests for chat completions; those beyond `n_open` wait until the test ends the server."""

    n_requests = 0
    n_open = 0
    lock = threading.Lock()
    is_ending = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        engine = type(self)
        with engine.lock:
            engine.n_requests += 1
            is_held = engine.n_requests > engine.n_open
        if is_held and engine.is_ending.wait():
            return
        body = json.dumps({"choices": [{"index": 0, "message": {"content": "#### 4"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def counting_engine(n_open: int) -> Iterator[str]:
    """Run an engine that responds to so many requests."""
    CountingEngine.n_requests, CountingEngine.n_open = 0, n_open
    CountingEngine.is_ending.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), CountingEngine) as server:
        server.daemon_threads = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        # The threads of requests end before the server is closed.
        CountingEngine.is_ending.set()


@pytest.fixture(scope="module")
def sums(write_rows: WriteRows) -> dict[str, Any]:
    """Return an own task with two examples before each prompt."""
    rows = [dict(row) for row in generate_problems(100, ProblemSplit.held_out, seed=1)]
    path = write_rows(rows)
    data = [{"split": split, "dataset": path} for split in ("test", "train")]
    return {"definition": SUMS, "data": data}


@pytest.fixture(scope="module")
def arc(write_rows: WriteRows) -> dict[str, Any]:
    """Return the stock task on rows of ours."""
    rows = [
        {
            "question": row["question"],
            "choices": {"text": ["1", "12 figs", "7", "30"], "label": list("ABCD")},
            "answerKey": "ABCD"[number % 4],
        }
        for number, row in enumerate(generate_problems(N_ROWS, ProblemSplit.train, seed=2))
    ]
    return {"task": "arc_easy", "data": [{"split": "test", "dataset": write_rows(rows)}]}


@pytest.fixture(scope="module")
def server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("engine") / "engine.log"
    with serving(log, "serving.engines.hf", "--model", str(starter), "--served-name", "base") as server:
        yield server.wait_until_ready()


def stage(starter: Path, *tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"stage": "lm_eval", "model": str(starter), "tasks": list(tasks), "max_rows": N_ROWS, **more}


def run(config: dict[str, Any], run_dir: Path) -> tuple[EvaluationResult, list[dict[str, Any]]]:
    result = run_stage(config, run_dir)
    rows = [json.loads(line) for line in (run_dir / "rows.jsonl").read_text().splitlines()]
    return EvaluationResult.model_validate(result), rows


def test_engines_equal_the_hf_backend_row_by_row(
    starter: Path, sums: dict[str, Any], arc: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    own, own_rows = run(stage(starter, sums, arc, batch_size=4), tmp_path / "hf")
    engine = {"engine_url": server.url, "engine_model": "base", "concurrency": 4}
    config = stage(starter, sums, arc, backend="completions", **engine)
    served, served_rows = run(config, tmp_path / "completions")
    _, chat_rows = run(stage(starter, sums, backend="chat_completions", **engine), tmp_path / "chat")
    assert [row["models"] for row in served_rows] == [row["models"] for row in own_rows]
    assert [row["models"] for row in chat_rows] == [row["models"] for row in own_rows[:N_ROWS]]
    for row, other in zip(own_rows[N_ROWS:], served_rows[N_ROWS:], strict=True):
        expected = pytest.approx(row["fields"]["log_probabilities"], abs=1e-3)
        assert other["fields"]["log_probabilities"] == expected
    assert [s.value for s in served.models[0].scores] == [s.value for s in own.models[0].scores]


def test_a_gate_decides_on_scores_by_the_names_that_a_config_promises(
    starter: Path, sums: dict[str, Any], tmp_path: Path
) -> None:
    metrics = [{"metric": "exact_match"}, {"metric": "bleu"}]
    plain = {**SUMS, "task": "plain", "metric_list": metrics, "filter_list": None, "num_fewshot": 0}
    result, _ = run(stage(starter, sums, {**sums, "definition": plain}), tmp_path / "run")
    measures = [one for task in (SUMS, plain) for one in list_measures(TaskDefinition.model_validate(task))]
    names = [score.metric for score in result.models[0].scores]
    assert names == [one.label for one in measures]
    has_interval = [score.interval_95 is not None for score in result.models[0].scores]
    assert has_interval == [one.has_row_values for one in measures]
    folder = EvaluationFolder(folder=str(tmp_path / "run" / "evaluation"))
    for name in names:
        decision = decide(GateConfig(evaluation=folder, metric=name, against=0.0, on=GateBasis.value))
        assert (decision.met, decision.metric, decision.n) == (True, name, N_ROWS)


def test_scores_carry_what_they_depend_on_and_rows_what_was_sent(
    adapted: dict[str, str], sums: dict[str, Any], arc: dict[str, Any], tmp_path: Path
) -> None:
    config = stage(Path(adapted["base"]), arc, sums) | {"model": adapted}
    result, rows = run(config, tmp_path)
    names = ["arc_easy/acc", "arc_easy/acc_norm", "sums/exact_match,strict", "sums/exact_match,flexible"]
    assert [score.metric for score in result.models[0].scores] == names
    assert (result.n, len(rows)) == (2 * N_ROWS, 2 * N_ROWS)
    for score in result.models[0].scores:
        values = [row["models"]["model"]["values"].get(score.metric) for row in rows]
        known = [value for value in values if value is not None]
        assert (sum(known) / len(known), len(known)) == pytest.approx((score.value, score.n))
        low, high = score.interval_95 or (1, 0)
        assert low <= score.value <= high
        assert "lm_eval|version:0.4.13|task:" in score.signature
    provenance = result.models[0].provenance
    model = provenance["model"]
    assert len(model["sha256"]) == len(model["adapter_sha256"]) == 64
    assert len(provenance["template_sha256"]) == 64
    assert provenance["tasks"]["sums"]["num_fewshot"] == 2
    [cache] = tmp_path.glob("responses-*.jsonl")
    for part in model.values():
        assert part[:16] in cache.name
    assert "float32" in cache.name and "lm_eval-0.4.13" in cache.name


def test_a_group_has_the_values_of_the_rows_of_its_tasks() -> None:
    def sample(row: int, value: float) -> dict[str, Any]:
        fields = {"doc": {}, "target": 0, "arguments": [("p", " a"), ("p", " b")], "filter": "none"}
        hashes = dict.fromkeys(("doc_hash", "prompt_hash", "target_hash"), "x")
        resps = [[(-1.0, True)], [(-2.0, False)]]
        return {"doc_id": row, "resps": resps, "metrics": ["acc"], "acc": value, **fields, **hashes}

    samples = {"a": [sample(0, 1.0), sample(1, 0.0)], "b": [sample(0, 1.0)]}
    groups = {"mmlu": {"acc,none": 2 / 3, "acc_stderr,none": 0.1}}
    rows = list_rows({"samples": samples, "groups": groups, "group_subtasks": {"mmlu": ["a", "b"]}})
    assert [row["models"]["model"]["values"]["mmlu/acc"] for row in rows] == [1.0, 0.0, 1.0]
    assert [row["row"] for row in rows] == [1, 2, 3]
    assert {row["reference"] for row in rows} == {" a"}


def test_a_group_reads_the_rows_of_its_tasks_from_one_file(
    starter: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    def row(subject: str, number: int) -> dict[str, Any]:
        choices = [str(number), str(number + 1), "7", "30"]
        return {"subject": subject, "question": f"{number} + 1?", "choices": choices, "answer": number % 4}

    data = {
        "test": [row("anatomy", n) for n in range(4)] + [row("virology", n) for n in range(2)],
        "dev": [row("anatomy", n) for n in range(10, 12)],
    }
    splits = [{"split": split, "dataset": write_rows(rows)} for split, rows in data.items()]
    result, rows = run(stage(starter, {"task": "mmlu", "data": splits}), tmp_path)
    scores = {score.metric: score for score in result.models[0].scores}
    names = ["mmlu", "mmlu_stem", "mmlu_other", "mmlu_anatomy", "mmlu_virology"]
    assert sorted(scores) == sorted(f"{name}/acc" for name in names)
    counts = {name: scores[f"{name}/acc"].n for name in names}
    assert counts == {"mmlu": 6, "mmlu_stem": 4, "mmlu_other": 2, "mmlu_anatomy": 4, "mmlu_virology": 2}
    assert "tasks:2" in scores["mmlu/acc"].signature
    assert all("mmlu/acc" in row["models"]["model"]["values"] for row in rows)
    assert rows[0]["prompt"][0]["content"].count("about anatomy") == 1


def test_a_killed_run_asks_only_for_what_is_missing(
    programs: Programs, starter: Path, sums: dict[str, Any], tmp_path: Path
) -> None:
    config = stage(starter, sums, backend="chat_completions", concurrency=2, max_rows=100)
    with counting_engine(n_open=40) as url:
        process = programs.start("trainers.lm_eval", config | {"engine_url": url}, tmp_path)
        wait_for(lambda: count_responses(tmp_path) >= 16, process)
        process.kill()
        process.communicate()
    n_kept = count_responses(tmp_path)
    assert 16 <= n_kept <= 40
    with counting_engine(n_open=100) as url:
        result, rows = run(config | {"engine_url": url}, tmp_path)
    assert (CountingEngine.n_requests, len(rows), result.n) == (100 - n_kept, 100, 100)


def count_responses(run_dir: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in run_dir.glob("responses-*.jsonl"))


def test_an_unreachable_hub_is_one_sentence(
    starter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(HubUnreachable, match=r"The data of arc_easy is on the hub .* HF_HUB_OFFLINE is set"):
        run_stage(stage(starter, {"task": "arc_easy"}), tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachable, match=r"cannot be reached: .*refused") as error:
        run_stage(stage(starter, {"task": "mmlu"}), tmp_path)
    assert error.value.code is ErrorCode.hub_unreachable


def test_an_engine_that_is_away_is_a_failure_that_can_be_resumed(
    starter: Path, sums: dict[str, Any], tmp_path: Path
) -> None:
    config = stage(starter, sums, backend="chat_completions", engine_url="http://127.0.0.1:9")
    with pytest.raises(EngineFailed, match=r"The engine at http://127\.0\.0\.1:9 failed"):
        run_stage(config | {"max_rows": 1}, tmp_path)


def test_what_a_task_lacks_is_named_before_the_model_is_asked(
    starter: Path, sums: dict[str, Any], arc: dict[str, Any], write_rows: WriteRows, tmp_path: Path
) -> None:
    data = [{"split": "test", "dataset": write_rows([{"question": "1 + 1?", "answer": "2"}])}]
    lacking = [{"split": "test", "dataset": write_rows([{"question": "1 + 1?"}])}]
    uneven = [
        {"split": "test", "dataset": write_rows([{"question": "1?", "answer": "1"}, {"question": "2?"}])}
    ]
    gsm8k = {"task": "gsm8k", "data": data}
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        (stage(starter, {"task": "gsm8"}), TaskUnknown, "has no task 'gsm8'"),
        (stage(starter, gsm8k), ConfigInvalid, "shows 5 examples"),
        (stage(starter, gsm8k | {"data": lacking}), DatasetInvalid, "'answer' is undefined"),
        (stage(starter, gsm8k | {"data": uneven}), DatasetInvalid, "Row 2 of .* has no field answer"),
        (stage(starter, gsm8k | {"task": "hellaswag"}), ConfigInvalid, "scores the rows of validation"),
        (stage(starter, gsm8k | {"task": "mmlu"}), DatasetInvalid, "has no field subject"),
        (
            stage(starter, arc | {"task": "mmlu", "member_field": "question"}),
            DatasetInvalid,
            "has no task for",
        ),
        (stage(starter, sums | {"data": lacking}), DatasetInvalid, "Row 1 .* rendered by doc_to_target"),
        (stage(starter, arc, backend="chat_completions"), TaskRefused, "compares log-probabilities"),
        (stage(starter, sums, max_new_tokens=256), ConfigInvalid, "no room for a prompt .* of 256"),
        (stage(starter, sums, backend="completions"), ConfigInvalid, "engine_url is missing"),
    ]
    for config, error, message in cases:
        with pytest.raises(error, match=message):
            run_stage(config, tmp_path)
