"""Goal: a base without a chat template trains on texts, and on conversations with a template chosen by name.

The base is the starter without its template. Each model is saved by the stage and loaded again.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.preflight.test_findings import CLEAN, chat, codes, run_preflight
from tests.integration.trainers.stages import run_stage
from trainers.configs.base import AdaptedModel
from trainers.configs.stages.prepare import PrepareConfig
from trainers.configs.training import ChatTemplateName
from trainers.modeling.load import TemplateUnsuitable, load_tokenizer, template_sha256
from trainers.prepare import run as prepare
from trainers.rendering.examples.sft import load_examples
from trainers.rendering.named_templates import TEMPLATES
from trainers.rendering.plain_text import TemplateMissing
from trainers.rendering.render import PromptCompletion, render_example, tokenize_prompt
from trainers.runtime.errors import DatasetInvalid
from trainers.runtime.events import EventWriter

Rows = list[dict[str, Any]]
Write = Callable[[Rows], str]

TEXTS = [{"prompt": f"{row['question']}\n", "completion": row["answer"]} for row in CLEAN]
CHATS = [chat(("user", row["question"]), ("assistant", row["answer"])) for row in CLEAN]
DOCUMENTS = [{"text": f"{row['question']}\n{row['answer']}"} for row in CLEAN]
TOOL = {"type": "function", "function": {"name": "find", "description": "Find a word.", "parameters": {}}}


@pytest.fixture(scope="module")
def bare(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the starter without a chat template; its architecture and tokens are of no known family."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(starter, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def stage(bare: Path, dataset: str, **fields: Any) -> dict[str, Any]:
    values = {"stage": "sft", "base": str(bare), "dataset": dataset, "max_steps": 2, "batch_size": 4}
    return values | {"tuning": {"method": "lora", "rank": 2}} | fields


def test_prompts_and_completions_follow_each_other_as_they_are(bare: Path, write_rows: Write) -> None:
    tokenizer = load_tokenizer(str(bare))
    (example, *_) = load_examples(write_rows(TEXTS), tokenizer, 256).examples
    assert example.text == TEXTS[0]["prompt"] + TEXTS[0]["completion"] + tokenizer.eos_token
    learned = tokenizer.decode([label for label in example.labels if label >= 0])
    assert learned == TEXTS[0]["completion"] + tokenizer.eos_token


def test_every_token_of_a_document_and_its_end_carry_loss(bare: Path, write_rows: Write) -> None:
    tokenizer = load_tokenizer(str(bare))
    rows = [DOCUMENTS[0], {"text": "one two three " * 40}]
    examples = load_examples(write_rows(rows), tokenizer, 64)
    first, *pieces = examples.examples
    assert (first.labels, first.text) == (first.input_ids, DOCUMENTS[0]["text"] + tokenizer.eos_token)
    ids = [token for piece in pieces for token in piece.input_ids]
    assert tokenizer.decode(ids) == rows[1]["text"] + tokenizer.eos_token
    assert (examples.truncated, max(map(len, (p.input_ids for p in pieces))) <= 64, len(pieces) > 2) == (
        0,
        True,
        True,
    )
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize(
    ("rows", "fields"),
    [(TEXTS, {}), (DOCUMENTS, {}), (DOCUMENTS, {"packing": True}), (CHATS, {"template": "transcript"})],
    ids=["texts", "documents", "packed documents", "conversations"],
)
def test_a_base_without_a_template_trains_and_its_template_is_published(
    bare: Path, tmp_path: Path, write_rows: Write, rows: Rows, fields: dict[str, Any]
) -> None:
    result = run_stage(stage(bare, write_rows(rows), **fields, max_length=128), tmp_path)
    assert result is not None
    adapter = AdaptedModel(base=str(bare), adapter=str(tmp_path / "model"))
    published = load_tokenizer(adapter)
    assert result["model"]["template_sha256"] == template_sha256(published)
    assert (published.chat_template is None) == (fields.get("template") is None)
    pair = PromptCompletion(1, [{"role": "user", "content": "Two?"}], [], None)
    expected = "User: Two?\nAssistant:" if fields.get("template") else "Two?"
    assert published.decode(tokenize_prompt(pair, published)) == expected


def test_pairs_are_texts_too(bare: Path, tmp_path: Path, write_rows: Write) -> None:
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "#### 0"} for row in TEXTS]
    assert run_stage(stage(bare, write_rows(pairs), stage="dpo", max_length=128), tmp_path) is not None


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (CHATS[0], "is a conversation"),
        (CLEAN[0], "is a conversation"),
        (TEXTS[0] | {"system": "Count."}, "is a conversation of system, user"),
        (TEXTS[0] | {"tools": [TOOL]}, "has tools"),
    ],
    ids=["messages", "question", "system", "tools"],
)
def test_a_conversation_needs_a_template(
    bare: Path, write_rows: Write, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TemplateMissing, match=f"row 2 {reason}") as refused:
        load_examples(write_rows([TEXTS[0], row]), load_tokenizer(str(bare)), 256)
    assert "`template` (`transcript` suits every tokenizer)" in str(refused.value.hint)


def test_a_template_whose_tokens_are_missing_is_refused_with_those_that_suit(bare: Path) -> None:
    with pytest.raises(TemplateUnsuitable, match=r"llama3 needs the tokens <\|eot_id\|>") as refused:
        load_tokenizer(str(bare), ChatTemplateName.llama3)
    assert refused.value.hint == "Choose one of the templates that suit it: chatml, qwen3, transcript."


def test_a_named_template_replaces_the_model_s_own(starter: Path) -> None:
    own, named = load_tokenizer(str(starter)), load_tokenizer(str(starter), ChatTemplateName.transcript)
    assert own.chat_template != named.chat_template == TEMPLATES[ChatTemplateName.transcript].text


def test_the_tools_calls_and_reasoning_of_a_row_are_rendered_by_qwen3(
    bare: Path, tmp_path: Path, write_rows: Write
) -> None:
    call = {"type": "function", "function": {"name": "find", "arguments": '{"word": "한글"}'}}
    turns = [
        {"role": "user", "content": "Find it."},
        {"role": "assistant", "content": None, "tool_calls": [call, call], "reasoning_content": "A word."},
        {"role": "tool", "content": "found", "tool_call_id": "1"},
        {"role": "assistant", "content": "Done.", "reasoning_content": "It is there."},
    ]
    dataset = write_rows([{"messages": turns, "tools": [TOOL]}])
    result = run_preflight(bare, tmp_path, dataset, template="qwen3", max_length=512)
    # The row has more tokens than the starter has positions.
    assert codes(result) == ["length_beyond_model"]


@pytest.mark.parametrize(
    ("template", "code"),
    [(None, "dataset_unusable"), ("llama3", "model_unfit")],
    ids=["missing", "unsuitable"],
)
def test_preflight_finds_a_template_that_is_missing_or_unsuitable(
    bare: Path, tmp_path: Path, write_rows: Write, template: str | None, code: str
) -> None:
    result = run_preflight(bare, tmp_path, write_rows(CHATS), template=template)
    assert (codes(result), result["passed"]) == ([code], False)
    assert "transcript" in result["findings"][0]["hint"]


def test_preflight_and_preview_show_how_rows_are_rendered(
    bare: Path, tmp_path: Path, write_rows: Write
) -> None:
    dataset = write_rows(DOCUMENTS)
    result = run_preflight(bare, tmp_path, dataset)
    assert (codes(result), result["passed"]) == (["rows_are_text"], True)
    assert all(token["loss"] for token in result["rows"][0]["tokens"])
    config = PrepareConfig.model_validate(
        {"base": str(bare), "dataset": write_rows(CHATS), "template": "chatml", "rows": 1}
    )
    shown = prepare(config, tmp_path, EventWriter(None))["rows"][0]
    assert shown["text"].startswith("<|im_start|>user\n")


def test_a_template_of_ours_for_a_base_without_one_is_an_information(
    bare: Path, tmp_path: Path, write_rows: Write
) -> None:
    tokenizer = load_tokenizer(str(bare), ChatTemplateName.chatml)
    base = tmp_path / "base"
    shutil.copytree(bare, base)
    tokenizer.save_pretrained(base)
    result = run_preflight(base, tmp_path, write_rows(CHATS))
    assert [(found["code"], found["level"]) for found in result["findings"]] == [("template_of_ours", "info")]


@pytest.mark.parametrize("kind", ["grpo", "evaluate"])
def test_documents_are_refused_where_a_prompt_is_needed(
    bare: Path, tmp_path: Path, write_rows: Write, kind: str
) -> None:
    dataset = write_rows(DOCUMENTS)
    stages = {
        "grpo": stage(bare, dataset, stage="grpo", batch_size=8, rewards=[{"kind": "chrf"}]),
        "evaluate": {"stage": "evaluate", "model": str(bare), "dataset": dataset},
    }
    with pytest.raises(DatasetInvalid, match="without a prompt"):
        run_stage(stages[kind], tmp_path)


def test_prompts_of_grpo_need_a_template(bare: Path, tmp_path: Path, write_rows: Write) -> None:
    values = stage(bare, write_rows(TEXTS), stage="grpo", batch_size=8, rewards=[{"kind": "chrf"}])
    with pytest.raises(TemplateMissing):
        run_stage(values, tmp_path)


def test_the_boundary_between_prompt_and_completion_is_kept(bare: Path) -> None:
    pair = PromptCompletion(
        1, [{"role": "user", "content": "a "}], [{"role": "assistant", "content": " b"}], None
    )
    assert render_example(pair, load_tokenizer(str(bare)), 64).text.startswith("a  b")
