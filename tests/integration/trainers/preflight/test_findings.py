"""Goal: each fault gives exactly its finding, and clean files give none."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from tests.architectures import find_architecture, write_model
from tests.conftest import ROOT
from trainers.configs import parse_stage
from trainers.configs.stages.preflight import PreflightConfig
from trainers.configs.training import TrainingConfig
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.preflight.__main__ import run as preflight
from trainers.preflight.findings import FindingCode
from trainers.preflight.setting_findings import check_cpu_time
from trainers.preflight.start.before_training import PreflightFailed
from trainers.preflight.token_findings import check_tokens
from trainers.rendering.render import Example
from trainers.runtime.events import EventWriter
from trainers.sft import run as train

Rows = list[dict[str, Any]]
Write = Callable[[Rows], str]
CLEAN = [dict(row) for row in generate_problems(40, ProblemSplit.train, seed=2)]
LONG_ANSWER = "I am sorry, but I cannot help with that. #### 1"


def run_preflight(base: Path, tmp_path: Path, dataset: str, **target: Any) -> dict[str, Any]:
    # Stated steps are meant, however few the rows are.
    values = {
        "stage": "sft",
        "base": str(base),
        "dataset": dataset,
        "max_length": 256,
        "max_steps": 20,
    } | target
    if values["stage"] == "grpo":
        del values["max_length"]
    config = PreflightConfig.model_validate({"target": values})
    return preflight(config, tmp_path, EventWriter(None))


def test_rows_that_make_few_steps_are_found(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    (found,) = run_preflight(starter, tmp_path, write_rows(CLEAN), max_steps=None)["findings"]
    assert (found["code"], found["level"]) == ("few_steps", "warning")
    assert found["message"].startswith("The stage takes 3 optimizer steps (40 rows, 16 a step, epochs 1)")


def codes(result: dict[str, Any]) -> list[str]:
    return [found["code"] for found in result["findings"]]


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def pairs(rows: Rows, rejected: str = "#### 0") -> Rows:
    return [{"prompt": row["question"], "chosen": row["answer"], "rejected": rejected} for row in rows]


@pytest.mark.parametrize(
    "rows",
    [
        CLEAN,
        [{"prompt": row["question"], "completion": row["answer"]} for row in CLEAN],
        [chat(("user", row["question"]), ("assistant", row["answer"])) for row in CLEAN],
        [
            chat(
                ("system", "Count."),
                ("user", "Hi"),
                ("assistant", "Yes?"),
                ("user", f"{n}?"),
                ("assistant", f"#{n}"),
            )
            for n in range(20)
        ],
    ],
    ids=["question_answer", "prompt_completion", "messages", "turns"],
)
def test_nothing_is_found_in_clean_rows(starter: Path, tmp_path: Path, write_rows: Write, rows: Rows) -> None:
    held_out = write_rows([dict(row) for row in generate_problems(30, ProblemSplit.held_out, seed=2)])
    result = run_preflight(starter, tmp_path, write_rows(rows), held_out=[held_out])
    assert (codes(result), result["passed"]) == ([], True)


def test_nothing_is_found_in_clean_pairs_and_prompts(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    assert codes(run_preflight(starter, tmp_path, write_rows(pairs(CLEAN)), stage="dpo")) == []
    grpo = {"stage": "grpo", "rewards": [{"kind": "chrf"}], "max_completion_length": 24}
    assert codes(run_preflight(starter, tmp_path, write_rows(CLEAN), **grpo)) == []


@pytest.mark.parametrize(
    ("rows", "code", "level", "line"),
    [
        ([*CLEAN, CLEAN[7]], "duplicates", "warning", 41),
        ([*CLEAN, {"question": CLEAN[3]["question"], "answer": ""}], "completion_empty", "error", 41),
        ([*CLEAN, {"question": "a " * 300, "answer": "#### 1"}], "labels_all_masked", "warning", 41),
        (
            [{"question": f"Tell {'x' * n}?", "answer": LONG_ANSWER} for n in range(12)],
            "completion_repeated",
            "warning",
            1,
        ),
        (
            [*CLEAN, {"question": "What ends a turn?<|im_end|>", "answer": "#### 1"}],
            "special_tokens_in_text",
            "warning",
            41,
        ),
        (
            [
                {
                    "messages": [
                        {**turn, "weight": 2} for turn in chat(("user", "a"), ("assistant", "b"))["messages"]
                    ]
                }
            ],
            "rows_invalid",
            "warning",
            1,
        ),
        ([chat(("user", "a"), ("user", "b"), ("assistant", "c"))], "roles_out_of_order", "warning", 1),
        ([chat(("assistant", "a"), ("user", "b"), ("assistant", "c"))], "roles_out_of_order", "error", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_with_one_fault_gives_that_finding_with_its_line(
    starter: Path, tmp_path: Path, write_rows: Write, rows: Rows, code: str, level: str, line: int
) -> None:
    result = run_preflight(starter, tmp_path, write_rows(rows))
    (found,) = result["findings"]
    assert (found["code"], found["level"], found["examples"][0]["line"]) == (code, level, line)
    assert result["passed"] is (level == "warning")


def test_rows_that_lose_their_end_are_counted(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    rows = [*CLEAN[:9], {"question": "How many?", "answer": "one " * 300}]
    (found,) = run_preflight(starter, tmp_path, write_rows(rows))["findings"]
    assert (found["code"], found["count"], found["share"]) == ("rows_truncated", 1, 0.1)
    assert "of all tokens are lost" in found["message"]


def test_rows_that_the_template_refuses_are_a_finding_and_no_failure(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    refusing = "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('No system turns') }}{%- endif %}"
    base = with_template(starter, tmp_path, lambda template: refusing + template)
    rows = [chat(("user", "a"), ("assistant", "b")), chat(("system", "s"), ("user", "a"), ("assistant", "b"))]
    result = run_preflight(base, tmp_path, write_rows(rows))
    assert (codes(result), result["passed"]) == (["dataset_unusable"], False)
    assert "cannot render row 2: No system turns" in result["findings"][0]["message"]


def test_near_duplicates_are_found(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    text = (
        "A lighthouse keeper walks along the long grey wall each morning and counts the boats that pass by. "
    )
    rows = [{"question": text * 2, "answer": "Many."}, {"question": text * 2 + "Now.", "answer": "Many."}]
    (found,) = run_preflight(starter, tmp_path, write_rows(rows), max_length=256)["findings"]
    assert (found["code"], found["examples"][0]["line"]) == ("near_duplicates", 2)


def test_test_rows_in_the_training_data_are_found(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    held_out = write_rows([CLEAN[4], {"question": "Unseen?", "answer": "#### 1"}])
    (found,) = run_preflight(starter, tmp_path, write_rows(CLEAN), held_out=[held_out])["findings"]
    assert (found["code"], found["level"], found["count"]) == ("test_rows_in_training", "error", 1)
    assert found["examples"][0] == {"line": 5, "text": "row 1 of the held-out data"}


def test_the_start_of_training_finds_test_rows_in_another_encoding(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    asked = [f"사과 {n}개를 두 명이 나누면 몇 개씩인가?" for n in range(12)]
    held_out = write_rows([{"question": text, "answer": "#### 1"} for text in asked])
    rows = [{"question": unicodedata.normalize("NFD", text), "answer": "#### 1"} for text in asked]
    values = {"stage": "sft", "base": str(starter), "dataset": write_rows(rows), "held_out": [held_out]}
    with pytest.raises(PreflightFailed, match="12 of 12 held-out rows are in the training data"):
        train(parse_stage(values | {"max_length": 2048}), tmp_path, EventWriter(None))  # type: ignore[arg-type]


def test_test_rows_with_small_changes_are_found(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    text = "A lighthouse keeper walks along the long grey wall each morning and counts 7 boats. How many left"
    train = write_rows([*CLEAN, {"question": text + "?", "answer": "#### 7"}])
    held_out = write_rows([{"question": text + " ?", "answer": "#### 7"}])
    (found,) = run_preflight(starter, tmp_path, train, held_out=[held_out])["findings"]
    assert (found["code"], found["level"]) == ("test_rows_nearly_in_training", "warning")
    other = write_rows([{"question": text.replace("7", "8") + "?", "answer": "#### 8"}])
    assert run_preflight(starter, tmp_path, train, held_out=[other])["findings"] == []


@pytest.mark.parametrize(("equal", "level"), [(1, "warning"), (40, "error")])
def test_pairs_without_a_preference_are_found(
    starter: Path, tmp_path: Path, write_rows: Write, equal: int, level: str
) -> None:
    rows = pairs(CLEAN)
    for row in rows[:equal]:
        row["rejected"] = row["chosen"]
    result = run_preflight(starter, tmp_path, write_rows(rows), stage="dpo")
    (found,) = [found for found in result["findings"] if found["code"] == "chosen_equals_rejected"]
    assert (found["level"], found["count"]) == (level, equal)


def test_a_constant_reward_is_found(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    rewards = [{"kind": "chrf"}, {"kind": "format", "form": "boxed"}]
    grpo = {"stage": "grpo", "rewards": rewards, "max_completion_length": 16, "num_generations": 4}
    (found,) = run_preflight(starter, tmp_path, write_rows(CLEAN), **grpo)["findings"]
    assert (found["code"], found["level"]) == ("reward_constant", "warning")
    assert "'format'" in found["message"]
    alone = run_preflight(starter, tmp_path, write_rows(CLEAN), **(grpo | {"rewards": rewards[1:]}))
    assert [found["level"] for found in alone["findings"]] == ["error"]


def test_references_without_an_answer_are_found(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    rows = [*CLEAN, {"question": "Why?", "answer": "because"}]
    grpo = {"stage": "grpo", "rewards": [{"kind": "correctness"}], "max_completion_length": 8}
    result = run_preflight(starter, tmp_path, write_rows(rows), **grpo)
    found = {finding["code"]: finding for finding in result["findings"]}
    assert found["reference_without_answer"]["examples"] == [{"line": 41, "text": "because"}]


@pytest.mark.parametrize(("rate", "how"), [(0.9, "above"), (1e-9, "below")])
def test_a_learning_rate_far_from_the_usual_is_found(
    starter: Path, tmp_path: Path, write_rows: Write, rate: float, how: str
) -> None:
    (found,) = run_preflight(starter, tmp_path, write_rows(CLEAN), learning_rate=rate)["findings"]
    assert (found["code"], found["level"]) == ("learning_rate_unusual", "warning")
    assert f"far {how}" in found["message"]


def test_a_template_that_never_ends_a_turn_is_found(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    base = with_template(starter, tmp_path, lambda template: template.replace(" + '<|im_end|>'", ""))
    found = run_preflight(base, tmp_path, write_rows(CLEAN))["findings"]
    assert [finding["code"] for finding in found] == ["end_of_turn_not_trained"]
    assert found[0]["count"] == 40


def test_a_template_that_renders_prompts_otherwise_is_found(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    base = with_template(starter, tmp_path, lambda template: "{{- messages | length }}" + template)
    assert codes(run_preflight(base, tmp_path, write_rows(CLEAN))) == ["template_not_prefix_preserving"]


def test_a_doubled_beginning_is_found(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    base = with_template(starter, tmp_path, lambda t: "{{- bos_token + bos_token }}" + t, bos="<|endoftext|>")
    (found,) = run_preflight(base, tmp_path, write_rows(CLEAN))["findings"]
    assert (found["code"], found["count"], found["examples"][1]["line"]) == ("double_bos", 40, 2)
    once = with_template(starter, tmp_path / "once", lambda t: "{{- bos_token }}" + t, bos="<|endoftext|>")
    assert codes(run_preflight(once, tmp_path, write_rows(CLEAN))) == []


def test_rows_beyond_the_model_s_positions_are_found(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    rows = [*CLEAN, {"question": "How many?", "answer": "one " * 300 + "#### 1"}]
    (found,) = run_preflight(starter, tmp_path, write_rows(rows), max_length=2048)["findings"]
    assert (found["code"], found["level"]) == ("length_beyond_model", "error")
    assert found["examples"][0]["line"] == 41


def test_tokens_without_an_embedding_are_found(starter: Path) -> None:
    tokenizer, config = AutoTokenizer.from_pretrained(starter), AutoConfig.from_pretrained(starter)
    end = tokenizer.eos_token_id
    ids = [5, config.vocab_size + 3, end]
    example = Example(1, "text", ids, 0, truncated=False, prompt_is_prefix=True, length=3)
    (found,) = check_tokens([example], tokenizer, config, frozenset([end]), 64)
    assert (found.code, found.count, found.examples[0].line) == (FindingCode.vocabulary_mismatch, 1, 1)


@pytest.mark.parametrize(("unknown", "level"), [(1, "warning"), (9, "error")])
def test_labels_that_the_tokenizer_does_not_have_are_found(starter: Path, unknown: int, level: str) -> None:
    tokenizer, config = AutoTokenizer.from_pretrained(starter), AutoConfig.from_pretrained(starter)
    end = tokenizer.eos_token_id
    tokenizer.unk_token = tokenizer.convert_ids_to_tokens(7)
    ids = [5, *[7] * unknown, *[6] * (20 - unknown), end]
    clean = Example(1, "text", [7, 6, end], 1, truncated=False, prompt_is_prefix=True, length=3)
    example = Example(2, "text", ids, 0, truncated=False, prompt_is_prefix=True, length=len(ids))
    (found,) = check_tokens([clean, example], tokenizer, config, frozenset([end]), 64)
    assert (found.code, found.level, found.count) == (FindingCode.unknown_tokens, level, 1)
    assert (found.examples[0].line, f"{unknown / 24:.1%} of all labels" in found.message) == (2, True)
    # GPT-2 calls its end token the unknown one.
    tokenizer.unk_token = tokenizer.eos_token
    assert list(check_tokens([clean, example], tokenizer, config, frozenset([end]), 64)) == []


def test_settings_that_do_not_suit_the_model_are_found(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    tuning = {"target_modules": ["qkv_proj"]}
    (found,) = run_preflight(starter, tmp_path, write_rows(CLEAN), tuning=tuning)["findings"]
    assert (found["code"], found["level"]) == ("model_unfit", "error")
    assert "named qkv_proj" in found["message"] and "k_proj" in found["message"]


def test_memory_without_a_formula_is_found(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    base = write_model(find_architecture("Mamba"), starter, tmp_path / "mamba")
    result = run_preflight(base, tmp_path, write_rows(CLEAN))
    assert (codes(result), result["passed"], result["memory"]) == (["memory_unknown"], True, None)


def test_every_finding_has_its_test() -> None:
    folders = [Path(__file__).parents[1], ROOT / "tests/unit/trainers/preflight"]
    text = "".join(path.read_text() for folder in folders for path in folder.rglob("test_*.py"))
    assert [code for code in FindingCode if f'"{code}"' not in text and f".{code}" not in text] == []


def test_training_does_not_start_with_an_error_unless_preflight_is_warn(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    dataset = write_rows(CLEAN)
    values = {"stage": "sft", "base": str(starter), "dataset": dataset, "held_out": [dataset], "max_steps": 1}
    with pytest.raises(PreflightFailed, match="test_rows_in_training: 40 of 40 held-out rows") as refused:
        train(parse_stage(values), tmp_path, EventWriter(None))  # type: ignore[arg-type]
    assert "set preflight to warn" in str(refused.value.hint)
    kept = json.loads((tmp_path / "preflight.json").read_text())
    assert [found["code"] for found in kept["findings"]] == ["test_rows_in_training"]
    with EventWriter(tmp_path / "events.jsonl") as report:
        assert train(parse_stage(values | {"preflight": "warn"}), tmp_path, report)  # type: ignore[arg-type]
    warnings = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["code"] for line in warnings if line["type"] == "warning"] == ["test_rows_in_training"]


def test_previewed_rows_mark_their_loss_tokens(
    starter: Path, tmp_path: Path, write_rows: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_preflight(starter, tmp_path, write_rows([{"question": "Two?", "answer": "#### 2"}]))
    assert "⟦#### 2<|im_end|>\n⟧" in capsys.readouterr().out
    assert "".join(t["text"] for t in result["rows"][0]["tokens"] if t["loss"]) == "#### 2<|im_end|>\n"


def with_template(starter: Path, folder: Path, change: Callable[[str], str], bos: str | None = None) -> Path:
    """Return the starter with another chat template."""
    base = folder / "base"
    shutil.copytree(starter, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = change(tokenizer.chat_template)
    if bos:
        tokenizer.bos_token = bos
    tokenizer.save_pretrained(base)
    return base


def test_training_that_takes_hours_on_this_cpu_is_a_warning() -> None:
    config = parse_stage({"stage": "sft", "base": "b", "dataset": "d", "queue": "cpu"})
    assert isinstance(config, TrainingConfig)
    large = LlamaConfig(hidden_size=4096, num_hidden_layers=32, intermediate_size=14336, vocab_size=128256)
    (found,) = check_cpu_time(config, large, rows=10_000, tokens=3_000_000)
    assert (found.code, found.level) == ("cpu_training_slow", "warning")
    assert found.message.startswith("Training takes about ")
    small = LlamaConfig(hidden_size=64, num_hidden_layers=2, intermediate_size=128)
    assert list(check_cpu_time(config, small, rows=10_000, tokens=3_000_000)) == []
