"""Evaluations of several models on the same prompts, and their continuation after the program has ended."""

import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.counting_engine import CountingEngine, read_ledger
from tests.integration.trainers.conftest import Programs, events, wait_for
from trainers import evaluate
from trainers.configs import EvaluationFolder, GateBasis, GateConfig, parse_stage
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.evaluation.identity import hash_file
from trainers.evaluation.results import EvaluationResult
from trainers.gate.decision import decide
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid, DatasetInvalid
from trainers.runtime.events import EventWriter

ROWS = 40
CONCURRENCY = 4


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[CountingEngine]:
    with CountingEngine(tmp_path / "ledger.jsonl", wrong="base") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def config(engine: CountingEngine, tmp_path: Path) -> dict[str, Any]:
    """Return an evaluation of a model that is always right and a baseline that is right on even rows."""
    rows = [
        {"question": f"Say {n}.", "answer": f"#### {n}", "level": "odd" if n % 2 else "even"}
        for n in range(1, ROWS + 1)
    ]
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "stage": "evaluate",
        "model": "tuned",
        "baseline": "base",
        "engines": {name: {"url": engine.url, "model": served} for name, served in SERVED.items()},
        "dataset": str(dataset),
        "concurrency": CONCURRENCY,
        "max_new_tokens": 12,
    }


SERVED = {"model": "tuned", "baseline": "base"}


def run(config: dict[str, Any], run_dir: Path) -> EvaluationResult:
    result = run_program(config, run_dir)
    assert result is not None
    return EvaluationResult.model_validate(result)


def run_program(config: dict[str, Any], run_dir: Path) -> dict[str, Any] | None:
    run_dir.mkdir(exist_ok=True)
    parsed = parse_stage(config)
    assert isinstance(parsed, EvaluateConfig)
    with EventWriter(run_dir / files.EVENTS) as writer:
        return evaluate.run(parsed, run_dir, writer)


def _has_asked(ledger: Path, count: int) -> bool:
    return len(read_ledger(ledger)) >= count


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "rows.jsonl").read_text().splitlines()]


def test_the_scores_count_what_the_rows_say(config: dict[str, Any], tmp_path: Path) -> None:
    result = run(config, tmp_path / "run")
    tuned, base = (model.scores[0] for model in result.models)
    assert [model.role for model in result.models] == ["model", "baseline"]
    assert (result.n, tuned.value, base.value, base.n, base.failed) == (ROWS, 1.0, 0.5, ROWS, 0)
    assert base.interval_95 is not None and base.interval_95[0] < 0.5 < base.interval_95[1]
    lines = rows(tmp_path / "run")
    assert [row["row"] for row in lines] == list(range(1, ROWS + 1))
    assert lines[2]["models"]["baseline"] == {
        "responses": ["#### 4"],
        "values": {"maths_exact_match": 0.0},
        "finish_reason": "stop",
        "prompt_tokens": 0,
        "completion_tokens": 3,
    }
    assert lines[2]["fields"] == {"level": "odd"}
    [difference] = result.differences
    assert (difference.wins, difference.losses, difference.verdict) == (20, 0, "better")
    assert events(tmp_path / "run", "progress")[-1]["step"] == 2 * ROWS


def test_each_sample_has_a_seed_of_its_own_that_a_repetition_uses_again(
    config: dict[str, Any], engine: CountingEngine, tmp_path: Path
) -> None:
    sampled = config | {"samples": 3, "temperature": 0.7, "max_rows": 5, "baseline": None}
    run(sampled, tmp_path / "first")
    first = read_ledger(engine.ledger)
    assert len({(request["prompt"], request["seed"]) for request in first}) == 15
    assert len({request["seed"] for request in first}) == 15
    run(sampled, tmp_path / "second")
    assert Counter(json.dumps(one) for one in read_ledger(engine.ledger)[15:]) == Counter(
        json.dumps(one) for one in first
    )
    assert len(rows(tmp_path / "first")[0]["models"]["model"]["responses"]) == 3


def test_the_longest_prompts_are_sent_first(
    config: dict[str, Any], engine: CountingEngine, tmp_path: Path
) -> None:
    run(config | {"concurrency": 1, "baseline": None}, tmp_path / "run")
    lengths = [len(request["prompt"]) for request in read_ledger(engine.ledger)]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_row_is_asked_twice_after_the_program_was_ended_twice(
    programs: Programs, config: dict[str, Any], engine: CountingEngine, tmp_path: Path, number: signal.Signals
) -> None:
    engine.seconds = 0.05
    run_dir = tmp_path / "run"
    for asked in (15, 50):
        process = programs.start("trainers.evaluate", config, run_dir)
        wait_for(partial(_has_asked, engine.ledger, asked), process)
        process.send_signal(number)
        process.communicate(timeout=240)
        assert not (run_dir / files.RESULT).exists()
    status, _, err = programs.run("trainers.evaluate", config, run_dir)
    assert status == 0, err
    requests = read_ledger(engine.ledger)
    assert 2 * ROWS <= len(requests) <= 2 * ROWS + 2 * CONCURRENCY
    assert {(one["model"], one["prompt"]) for one in requests} == {
        (model, f"Say {n}.") for model in ("tuned", "base") for n in range(1, ROWS + 1)
    }
    result = EvaluationResult.model_validate(files.read_result(run_dir))
    assert [model.scores[0].value for model in result.models] == [1.0, 0.5]


def test_a_finished_evaluation_is_scored_by_other_metrics_without_an_engine(
    config: dict[str, Any], engine: CountingEngine, tmp_path: Path
) -> None:
    run(config, tmp_path / "run")
    exact = {"metric": "exact_match", "name": "exact", "ignore_case": True}
    metrics = ["maths_exact_match", exact]
    result = run(config | {"metrics": metrics, "engines": {}}, tmp_path / "run")
    assert [score.metric for score in result.models[0].scores] == ["maths_exact_match", "exact"]
    assert len(read_ledger(engine.ledger)) == 2 * ROWS


def test_responses_of_another_evaluation_are_not_used(config: dict[str, Any], tmp_path: Path) -> None:
    run(config, tmp_path / "run")
    with pytest.raises(ConfigInvalid, match="another evaluation"):
        run(config | {"max_new_tokens": 13}, tmp_path / "run")


def test_a_completion_may_use_what_the_window_leaves(
    config: dict[str, Any], engine: CountingEngine, tmp_path: Path
) -> None:
    engine.room = config["max_new_tokens"] - 1
    result = run(config, tmp_path / "run")
    assert result.models[0].scores[0].value == 1
    assert result.models[0].scores[0].failed == 0


def test_an_evaluation_without_any_response_fails_with_the_reason_of_the_engine(
    config: dict[str, Any], engine: CountingEngine, tmp_path: Path
) -> None:
    engine.room = 0
    with pytest.raises(evaluate.EveryRequestRejected, match="'model': max_tokens=0 cannot be greater"):
        run_program(config, tmp_path / "run")


def test_a_model_without_an_engine_is_named_with_the_command_that_starts_one(
    config: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigInvalid, match="'model'") as error:
        run(config | {"engines": {}}, tmp_path / "run")
    assert "python -m serving --engine hf" in str(error.value.hint)


def test_a_program_whose_other_engines_start_later_ends_without_a_result(
    config: dict[str, Any], engine: CountingEngine, tmp_path: Path
) -> None:
    only = {"model": config["engines"]["model"]}
    assert run_program(config | {"engines": only, "pending": ["baseline"]}, tmp_path / "run") is None
    assert {request["model"] for request in read_ledger(engine.ledger)} == {"tuned"}
    rest = {"baseline": config["engines"]["baseline"]}
    assert run(config | {"engines": rest}, tmp_path / "run").models[1].scores[0].value == 0.5
    assert len(read_ledger(engine.ledger)) == 2 * ROWS


def test_an_endpoint_gets_its_key_and_the_model_that_the_config_names(
    config: dict[str, Any], engine: CountingEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_ENDPOINT_LOCAL_URL", f"{engine.url}/v1")
    others = {"large": {"endpoint": "local", "model": "base"}}
    result = run(config | {"baseline": None, "others": others}, tmp_path / "run")
    assert [(model.role, model.model) for model in result.models] == [
        ("model", "tuned"),
        ("large", "base at local"),
    ]
    assert result.differences[0].other == "large"


def test_scores_name_what_they_depend_on_and_the_comparison_what_is_unequal(
    config: dict[str, Any], tmp_path: Path
) -> None:
    engines = config["engines"]
    engines["baseline"] |= {"hardware": "another machine"}
    result = run(config | {"engines": engines}, tmp_path / "run")
    provenance = result.models[0].provenance
    assert provenance["dataset"]["sha256"] == hash_file(Path(config["dataset"]))
    assert provenance["engine"]["version"] == "1.2.3"
    assert provenance["metrics"] == {"maths_exact_match": "maths_exact_match"}
    assert provenance["sampling"]["seed"] == 42
    [warning] = [one for one in result.warnings if "differ" in one]
    assert "engine.hardware" in warning and "another machine" in warning


def test_slices_that_became_worse_come_first_with_a_warning(config: dict[str, Any], tmp_path: Path) -> None:
    worse = config | {"model": "base", "baseline": "tuned", "slices": ["level", {"by": "length"}]}
    worse["engines"] = {"model": config["engines"]["baseline"], "baseline": config["engines"]["model"]}
    result = run(worse, tmp_path / "run")
    slices = {one["slice"]: one for one in result.details["slices"]}
    assert result.details["slices"][0]["slice"] == "level=odd"
    assert slices["level=odd"]["differences"][0]["verdict"] == "worse"
    assert slices["level=even"]["differences"][0]["verdict"] == "undecided"
    assert any("On level=odd (n = 20)" in warning for warning in result.warnings)


def test_clusters_widen_the_intervals_and_decide_the_test(config: dict[str, Any], tmp_path: Path) -> None:
    independent = run(config, tmp_path / "run")
    (tmp_path / "run" / files.RESULT).unlink(missing_ok=True)
    clustered = run(config | {"clusters": "level"}, tmp_path / "run")
    assert (independent.clusters, clustered.clusters) == (None, "level")
    # Two documents decide nothing, however many questions there are about each.
    assert [result.differences[0].verdict for result in (independent, clustered)] == ["better", "undecided"]
    narrow, wide = (result.models[1].scores[0].interval_95 or (0, 0) for result in (independent, clustered))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    with pytest.raises(DatasetInvalid, match="no field 'document'"):
        run(config | {"clusters": "document"}, tmp_path / "other")


def test_power_is_stated_before_and_after(config: dict[str, Any], tmp_path: Path) -> None:
    parsed = parse_stage(config)
    assert isinstance(parsed, EvaluateConfig)
    planned = evaluate.plan(parsed)["power"]
    assert planned.startswith("With 40 rows, a true difference of about 19 percentage points")
    [sentence] = run(config, tmp_path / "run").details["power"]
    assert sentence.startswith("maths_exact_match against 'baseline': With 40 rows, a true difference of ")


def test_test_rows_in_the_training_data_of_the_lineage_are_counted(
    config: dict[str, Any], tmp_path: Path
) -> None:
    training = tmp_path / "train.jsonl"
    known = [{"question": "Say  7.", "answer": "#### 7"}, {"question": "Name 99.", "answer": "#### 99"}]
    training.write_text("".join(json.dumps(row) + "\n" for row in known))
    origin = {"name": "tuned", "training_data": {"train": str(training)}}
    result = run(config | {"origins": {"model": origin}}, tmp_path / "run")
    [found] = result.details["contamination"]
    assert (found["exact_rows"], found["test_rows"]) == (1, ROWS)
    assert found["first"][0]["test_line"] == 7
    assert any("1 of 40 test rows" in warning and "'model'" in warning for warning in result.warnings)


def test_the_former_field_for_one_metric_names_its_successor(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Did you mean metrics"):
        parse_stage(config | {"metric": "maths_exact_match"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": 2}, "temperature above 0"),
        ({"metrics": [{"metric": "pass_at_k", "k": 4}]}, "needs 4 samples"),
        ({"others": {"baseline": "x"}}, "meaning of its own"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(
    config: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_stage(config | values)


def test_reference_without_a_number_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    dataset = tmp_path / "bad.jsonl"
    dataset.write_text('{"question": "2?", "answer": "#### 2"}\n{"question": "x?", "answer": "unknown"}\n')
    with pytest.raises(DatasetInvalid, match="Row 2"):
        run(config | {"dataset": str(dataset)}, tmp_path / "run")


def test_responses_in_a_field_of_the_rows_are_scored_without_an_engine(tmp_path: Path) -> None:
    """Models and stored responses can be compared; with stored ones alone nothing needs to run."""
    lines = [
        {
            "question": f"Say {n}.",
            "answer": f"#### {n}",
            "new": f"#### {n}",
            "old": None if n == 1 else "#### 0",
        }
        for n in range(1, 31)
    ]
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "stage": "evaluate",
        "model": {"field": "new"},
        "baseline": {"field": "old"},
        "dataset": str(dataset),
    }
    parsed = parse_stage(config)
    assert isinstance(parsed, EvaluateConfig) and parsed.engine_models == {} and parsed.device_count == 0
    result = run(config, tmp_path / "run")
    assert [(one.role, one.scores[0].value, one.scores[0].failed) for one in result.models] == [
        ("model", 1, 0),
        ("baseline", 0, 1),
    ]
    assert result.differences[0].verdict == "better"
    assert result.models[0].provenance["engine"]["kind"] == "stored"
    with pytest.raises(
        DatasetInvalid, match=r"Row 1 of .* has no responses to score: it has no field `newer`"
    ):
        run(config | {"model": {"field": "newer"}}, tmp_path / "other")
    with pytest.raises(DatasetInvalid, match=r"Row \d+ has 1 response in `new`, which is fewer"):
        run(config | {"samples": 2, "temperature": 1.0}, tmp_path / "more")


EARLY_STOP = {"against": "baseline", "rows_per_look": 8}


def test_an_evaluation_ends_once_its_test_has_decided(
    config: dict[str, Any], engine: CountingEngine, tmp_path: Path
) -> None:
    result = run(config | {"early_stop": EARLY_STOP}, tmp_path / "run")
    stop = result.early_stop
    assert stop is not None and (stop.outcome, stop.rows, stop.n) == ("met", ROWS, result.n)
    assert result.n < ROWS and result.n % 8 == 0 and stop.evidence >= 20
    assert len(read_ledger(engine.ledger)) == 2 * result.n
    assert [row["row"] for row in rows(tmp_path / "run")] != list(range(1, result.n + 1)), "a random order"
    assert "stopped after" in result.warnings[-1]
    folder = EvaluationFolder(folder=str(tmp_path / "run" / files.EVALUATION))
    gate = GateConfig(evaluation=folder, against="baseline", on=GateBasis.sequential)
    assert decide(gate).met and decide(gate).n == result.n
    with pytest.raises(ConfigInvalid, match=r"margin 0\.1; that of the evaluation is: .* margin 0"):
        decide(gate.model_copy(update={"margin": 0.1}))
    # A killed program resumes, and ends at the same row.
    (tmp_path / "run" / files.RESULT).unlink(missing_ok=True)
    assert run(config | {"early_stop": EARLY_STOP}, tmp_path / "run").n == result.n
    assert len(read_ledger(engine.ledger)) == 2 * result.n


def test_an_evaluation_ends_if_its_test_can_no_longer_be_met(config: dict[str, Any], tmp_path: Path) -> None:
    swapped = {"model": config["engines"]["baseline"], "baseline": config["engines"]["model"]}
    worse = run(config | {"early_stop": EARLY_STOP, "engines": swapped}, tmp_path / "worse").early_stop
    assert worse is not None and worse.outcome == "worse" and worse.n < ROWS and not worse.met
    same = dict.fromkeys(("model", "baseline"), config["engines"]["model"])
    equal = run(config | {"early_stop": EARLY_STOP, "engines": same}, tmp_path / "equal").early_stop
    assert equal is not None and (equal.outcome, equal.n) == ("out_of_reach", ROWS - 8)
    long = config | {"early_stop": EARLY_STOP | {"rows_per_look": 30}, "engines": same}
    undecided = run(long, tmp_path / "undecided").early_stop
    assert undecided is not None and (undecided.outcome, undecided.n) == ("undecided", ROWS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"early_stop": {"against": "other"}}, "compares with 'other'; the other models are"),
        ({"early_stop": {"against": "model"}}, "compares with 'model'"),
        ({"early_stop": EARLY_STOP | {"metric": "bleu"}}, "decides by 'bleu', which is not measured"),
        ({"early_stop": EARLY_STOP | {"margin": 1.0}}, "margin 1 of early_stop decides without a response"),
        ({"early_stop": EARLY_STOP, "metrics": ["bleu"]}, "cannot decide by bleu"),
        ({"early_stop": EARLY_STOP, "clusters": "level"}, "counts each row as independent"),
    ],
)
def test_an_early_stop_that_cannot_decide_is_refused(
    config: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_stage(config | values)
