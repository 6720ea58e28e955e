"""Chat templates of model families: no finding where they are correct, one where they are not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.integration.trainers.preflight.test_findings import chat, run_preflight
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems

Write = Callable[[list[dict[str, Any]]], str]

BOS, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ROWS = [
    chat(
        ("user", row["question"]),
        ("assistant", "Let me see."),
        ("user", "Well?"),
        ("assistant", row["answer"]),
    )
    for row in generate_problems(20, ProblemSplit.train, seed=3)
]
HEADERS = (
    "{{- bos_token }}{%- for m in messages %}{{- '<|im_start|>' + m.role + '<|im_start|>\n\n'"
    " + m.content | trim + '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_start|>\n\n' }}{%- endif %}"
)
BRACKETS = (
    "{{- bos_token }}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '[INST] ' + m.content + ' [/INST]' }}"
    "{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"
)
ALTERNATING = (
    "{{- bos_token }}{%- for m in messages %}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Take turns') }}{%- endif %}"
    "{{- '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim"
    " + '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>model\n' }}{%- endif %}"
)
# The reasoning of earlier turns is removed, and the last turn has an empty one.
THINKING = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# The prompt opens a reasoning block, which completions without reasoning do not have.
OPENED = THINKING.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\nHm'")

FAMILIES = ["llama", "mistral", "gemma", "qwen"]
# With a system prompt of its own, and turns without white space.
MISTRAL_3 = (
    "{{- bos_token }}{%- if messages[0].role == 'system' %}{%- set system, turns = messages[0].content, "
    "messages[1:] %}{%- else %}{%- set system, turns = 'You are Ministral.', messages %}{%- endif %}"
    "{{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}{%- for m in turns %}{%- if m.role == 'user' %}"
    "{{- '[INST]' + m.content + '[/INST]' }}{%- else %}{{- m.content + eos_token }}{%- endif %}{%- endfor %}"
)


@pytest.mark.parametrize("template", [HEADERS, BRACKETS, ALTERNATING, THINKING], ids=FAMILIES)
def test_nothing_is_found_under_templates_that_are_right(
    starter: Path, tmp_path: Path, write_rows: Write, template: str
) -> None:
    base = model(starter, tmp_path, chat_template=template, bos_token=BOS)
    assert run_preflight(base, tmp_path, write_rows(ROWS), max_length=256)["findings"] == []


@pytest.mark.parametrize("name", ["qwen3_5_nothink", "qwen3_5_think", "gemma4_v5", "mistral_3"])
def test_nothing_is_found_under_the_templates_of_the_families_of_today(
    name: str, starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    """Qwen's and Gemma's are the published ones, in which Gemma's marks of turns are those of the starter."""
    published = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    template = MISTRAL_3 if name == "mistral_3" else published.read_text()
    template = template.replace("<|turn>", TURN).replace("<turn|>", END)
    base = model(starter, tmp_path, chat_template=template, bos_token=BOS)
    system = {"role": "system", "content": "Be brief."}
    rows = write_rows([{"messages": [system, *row["messages"]]} for row in ROWS])
    assert run_preflight(base, tmp_path, rows, max_length=256)["findings"] == []


def test_a_template_whose_prompt_opens_a_thought_is_found(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    (found,) = run_preflight(model(starter, tmp_path, chat_template=OPENED), tmp_path, write_rows(ROWS))[
        "findings"
    ]
    assert (found["code"], found["count"]) == ("template_not_prefix_preserving", 40)


def test_a_turn_may_end_with_any_token_that_ends_generation(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    base = model(starter, tmp_path, eos_token=BOS)
    assert run_preflight(base, tmp_path, write_rows(ROWS))["findings"] == []
    (base / "generation_config.json").unlink()
    (found,) = run_preflight(base, tmp_path, write_rows(ROWS))["findings"]
    assert (found["code"], found["level"], found["count"]) == ("end_of_turn_not_trained", "error", 40)
    assert found["examples"][0]["line"] == 1


def test_a_template_that_refuses_the_order_of_turns_says_which(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    base = model(starter, tmp_path, chat_template=ALTERNATING, bos_token=BOS)
    rows = [*ROWS, chat(("user", "a"), ("user", "b"), ("assistant", "c"))]
    unusable, order = run_preflight(base, tmp_path, write_rows(rows))["findings"]
    assert "cannot render row 21: Take turns" in unusable["message"]
    assert (order["code"], order["examples"][0]["line"]) == ("roles_out_of_order", 21)


def test_an_end_of_turn_that_also_pads_is_still_trained(starter: Path) -> None:
    end = AutoTokenizer.from_pretrained(starter).eos_token_id
    rows = [{"input_ids": [5, 6, end], "labels": [-100, 6, end]}, {"input_ids": [5, end], "labels": [5, end]}]
    labels = DataCollatorForLanguageModeling(pad_token_id=end)(rows)["labels"]
    assert torch.equal(labels, torch.tensor([[-100, 6, end], [5, end, -100]]))


def test_a_pad_token_without_an_embedding_is_found(starter: Path, tmp_path: Path, write_rows: Write) -> None:
    base = model(starter, tmp_path, pad_token="<pad>")
    (found,) = run_preflight(base, tmp_path, write_rows(ROWS))["findings"]
    assert (found["code"], found["level"]) == ("vocabulary_mismatch", "error")
    assert "for padding" in found["message"]


def test_answers_that_may_outgrow_the_model_are_a_warning(
    starter: Path, tmp_path: Path, write_rows: Write
) -> None:
    described = json.loads((starter / "config.json").read_text()) | {"max_position_embeddings": 120}
    base = model(starter, tmp_path)
    (base / "config.json").write_text(json.dumps(described))
    values = {"stage": "grpo", "rewards": [{"kind": "chrf"}], "num_generations": 4, "batch_size": 4}
    (found,) = run_preflight(base, tmp_path, write_rows(ROWS), **values, max_completion_length=100)[
        "findings"
    ]
    assert (found["code"], found["level"]) == ("length_beyond_model", "warning")
    assert found["examples"][0]["text"].endswith("with a completion of 100 tokens")


def model(starter: Path, folder: Path, **changes: Any) -> Path:
    """Return the starter with another tokenizer setting."""
    base = folder / "base"
    shutil.copytree(starter, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    for name, value in changes.items():
        tokenizer.add_special_tokens({name: value}) if name == "pad_token" else setattr(
            tokenizer, name, value
        )
    tokenizer.save_pretrained(base)
    return base
