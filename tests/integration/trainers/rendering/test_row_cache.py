"""The cache of rendered datasets: its tokens are those of rows rendered one by one; it survives crashes."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from tests.services import require_root
from trainers.configs.stages.sft import SftConfig
from trainers.modeling import families
from trainers.modeling.load import load_tokenizer
from trainers.preflight import stored_findings
from trainers.preflight.check import check_stage
from trainers.preflight.findings import Finding, FindingCode
from trainers.preflight.stored_findings import find_once
from trainers.rendering.cache import build, open_rows
from trainers.rendering.cache.folder import (
    FOLDER_VARIABLE,
    META,
    RUN_FOLDER,
    RowCache,
    cache_of_process,
    folder_bytes,
)
from trainers.rendering.cache.spec import RowKind
from trainers.rendering.examples.labelled import load_labelled
from trainers.rendering.examples.preferences import load_preferences
from trainers.rendering.examples.prompts import render_prompts
from trainers.rendering.examples.sft import load_examples
from trainers.rendering.labelled_rows import read_labelled
from trainers.rendering.render import (
    Example,
    read_preferences,
    read_prompt_completions,
    read_prompts,
    render_example,
    tokenize_prompt,
)
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import DatasetInvalid, ProgramError
from trainers.training.samplers import StepSampler

WriteRows = Callable[[list[dict[str, Any]]], str]

TEXTS = ["Hello.", "  two spaces\n\n", "한글 😀", "<|im_end|>\n<|im_start|>user", "{{ x }}", "\n", "a" * 700]
CONVERSATIONS = [
    [{"role": "user", "content": TEXTS[i]}, {"role": "assistant", "content": TEXTS[j]}]
    for i in range(len(TEXTS))
    for j in range(len(TEXTS))
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}


@pytest.fixture(scope="module")
def tokenizer(starter: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(starter))


def render_one_by_one(dataset: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Example]:
    pairs = [pair for turns in read_prompt_completions(dataset) for pair in turns]
    return [render_example(pair, tokenizer, max_length) for pair in pairs]


TEMPLATES = [
    None,
    *(family.template for family in families.FAMILIES if family.system is families.SystemTurn.own_turn),
    # The prompt is not a prefix; completions are trimmed; there is no special token; tokens merge.
    "{% for m in messages %}{{ m.role + ': ' + m.content }}\n{% endfor %}{{ '?' if add_generation_prompt }}",
    "{% for m in messages %}<|im_start|>{{ m.content | trim }}<|im_end|>{% endfor %}",
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %} {% endif %}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_batch_has_the_tokens_and_labels_of_rows_that_are_rendered_one_by_one(
    starter: Path, write_rows: WriteRows, template: str | None
) -> None:
    tokenizer = load_tokenizer(str(starter))
    tokenizer.chat_template = template or tokenizer.chat_template
    turns = [{"messages": messages} for messages in CONVERSATIONS]
    long = [{"messages": [*CONVERSATIONS[0], *CONVERSATIONS[9], *CONVERSATIONS[20]]}]
    dataset = write_rows(turns + long)
    examples = load_examples(dataset, tokenizer, 256)
    assert list(examples.rendered) == render_one_by_one(dataset, tokenizer, 256)
    assert examples.truncated == len({e.row for e in examples.rendered if e.truncated}) > 0


@pytest.mark.parametrize(
    "added",
    [
        AddedToken("<|im_end|>\n<|im_start|>", special=True, normalized=False),
        AddedToken("<|im_start|>user", special=True, normalized=False, lstrip=True),
        AddedToken("|im_start|>assistant", special=True, normalized=False),
        AddedToken("user", special=True, single_word=True),
        AddedToken(" ", special=True, lstrip=True),
    ],
)
def test_added_tokens_that_contain_special_ones_are_rendered_alike(
    starter: Path, write_rows: WriteRows, added: AddedToken
) -> None:
    tokenizer = load_tokenizer(str(starter))
    tokenizer.add_tokens([added], special_tokens=added.special)
    dataset = write_rows([{"messages": messages} for messages in CONVERSATIONS])
    examples = load_examples(dataset, tokenizer, 256)
    assert list(examples.rendered) == render_one_by_one(dataset, tokenizer, 256)


def test_tools_and_a_template_of_their_own_are_rendered_alike(starter: Path, write_rows: WriteRows) -> None:
    tokenizer = load_tokenizer(str(starter))
    plain = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    calls = "{% for m in messages %}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"
    tokenizer.chat_template = {"default": plain, "tool_use": plain + "{{ tools | tojson }}" + calls}
    with_tools = {
        "messages": [CONVERSATIONS[0][0], {"role": "assistant", "content": None, "tool_calls": [CALL]}],
        "tools": [CALL],
    }
    dataset = write_rows([{"messages": CONVERSATIONS[0]}, with_tools, {"messages": CONVERSATIONS[1]}])
    examples = load_examples(dataset, tokenizer, 512)
    assert list(examples.rendered) == render_one_by_one(dataset, tokenizer, 512)


def test_pairs_have_the_tokens_of_pairs_that_are_rendered_one_by_one(
    tokenizer: PreTrainedTokenizerBase, write_rows: WriteRows
) -> None:
    rows = [{"prompt": a, "chosen": b, "rejected": a + b} for a in TEXTS for b in TEXTS]
    dataset = write_rows(rows)
    expected = [
        (render_example(chosen, tokenizer, 64), render_example(rejected, tokenizer, 64))
        for chosen, rejected in read_preferences(dataset)
    ]
    assert list(load_preferences(dataset, tokenizer, 64).pairs) == expected


def test_labelled_rows_have_the_tokens_of_rows_that_are_rendered_one_by_one(
    tokenizer: PreTrainedTokenizerBase, write_rows: WriteRows
) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": a, "completion": b, "label": len(b) % 2 == 0} for a in TEXTS for b in TEXTS
    ]
    pairs = [{"prompt": a, "chosen": a + "1", "rejected": a + "2"} for a in TEXTS]
    dataset = write_rows(rows + pairs)
    expected = [
        (render_example(pair, tokenizer, 64), label) for row in read_labelled(dataset) for pair, label in row
    ]
    labelled = load_labelled(dataset, tokenizer, 64)
    assert list(labelled.labelled) == expected
    trained = [(example, label) for example, label in expected if example.loss_tokens]
    assert 0 < labelled.count == len(trained) < labelled.rows == len(expected)
    assert labelled.lengths.tolist() == [len(example.input_ids) for example, _ in trained]
    assert [
        (record["prompt_ids"] + record["completion_ids"], record["label"]) for record in labelled.records
    ] == [(example.input_ids, label) for example, label in trained]
    assert labelled.truncated == sum(example.truncated for example, _ in expected) > 0


@pytest.mark.parametrize("kind", [RowKind.prompts, RowKind.references])
def test_prompts_have_the_tokens_of_prompts_that_are_rendered_one_by_one(
    tokenizer: PreTrainedTokenizerBase, write_rows: WriteRows, kind: RowKind
) -> None:
    rows: list[dict[str, Any]] = [{"prompt": a, "completion": b} for a in TEXTS for b in TEXTS]
    other = [{"prompt": "1?", "chosen": "1", "rejected": "2"}, {"prompt": "Without an answer?"}]
    dataset = write_rows(rows + other if kind is RowKind.prompts else rows)
    expected = list(read_prompts(dataset))
    prompts = render_prompts(kind, dataset, tokenizer)
    assert [(pair.row, pair.prompt, pair.completion_text) for pair in prompts.pairs] == [
        (pair.row, pair.prompt, pair.completion_text) for pair in expected
    ]
    tokens = [(pair.row, tokenize_prompt(pair, tokenizer)) for pair in expected]
    assert list(prompts.tokens_of_rows) == tokens
    assert prompts.lengths.tolist() == [len(ids) for _, ids in tokens]


def test_a_large_file_is_rendered_by_several_processes_to_the_same_rows(
    tokenizer: PreTrainedTokenizerBase,
    write_rows: WriteRows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = write_rows([{"messages": messages} for messages in CONVERSATIONS] * 20)
    small = load_examples(dataset, tokenizer, 64, cache=RowCache(tmp_path / "here"))
    monkeypatch.setattr(open_rows, "MIN_PROGRAM_BYTES", 1)
    large = load_examples(dataset, tokenizer, 64, cache=RowCache(tmp_path / "program"))
    assert small.mapped.table.equals(large.mapped.table)
    assert sorted(path.name for path in large.mapped.entry.iterdir()) == [META, build.ROWS]
    broken = write_rows([{"messages": CONVERSATIONS[0]}] * 600 + [{"question": "?"}])
    with pytest.raises(DatasetInvalid, match=r"Row 601 of .* has no known format"):
        load_examples(broken, tokenizer, 64, cache=RowCache(tmp_path / "program"))
    assert len(list((tmp_path / "program").glob("*[!k]"))) == 1


def test_a_second_start_renders_nothing_and_another_setting_renders_anew(
    tokenizer: PreTrainedTokenizerBase, training_rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_examples(training_rows, tokenizer, 64, cache=RowCache(tmp_path))
    assert (
        load_examples(training_rows, tokenizer, 65, cache=RowCache(tmp_path)).mapped.entry
        != first.mapped.entry
    )
    monkeypatch.setattr(open_rows, "_build", lambda *_: pytest.fail("rendered again"))
    second = load_examples(training_rows, tokenizer, 64, cache=RowCache(tmp_path))
    assert second.mapped.entry == first.mapped.entry and second.summary() == first.summary()


def test_processes_that_need_an_entry_wait_for_the_one_that_builds_it(tmp_path: Path) -> None:
    builds: list[int] = []

    def fill(folder: Path) -> None:
        builds.append(threading.get_ident())
        time.sleep(0.05)
        (folder / META).write_text("{}")

    ranks = [threading.Thread(target=RowCache(tmp_path).fetch, args=("ab" * 32, fill)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(builds) == 1


def test_a_crash_during_the_build_leaves_nothing_that_counts(tmp_path: Path) -> None:
    left = tmp_path / f".{'ab' * 32}.1.tmp"
    left.mkdir()
    (left / META).write_text("{}")

    def fail(folder: Path) -> None:
        (folder / META).write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RowCache(tmp_path).fetch("ab" * 32, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["ab.lock"]


def test_the_cache_is_bounded_and_keeps_what_is_in_use(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "rows.arrow").write_bytes(b"x" * 1000)
        (folder / META).write_text("{}")

    for age, digit in enumerate("dcba"):
        entry = tmp_path / (digit * 64)
        entry.mkdir(parents=True)
        fill(entry)
        os.utime(entry / META, (time.time() - 1000 * (age + 1),) * 2)
    RowCache(tmp_path).fetch("a" * 64, fill)  # The oldest until now, and in use from now on.
    RowCache(tmp_path, max_bytes=3100).fetch("e" * 64, fill)
    assert sorted(path.name[0] for path in tmp_path.iterdir() if path.is_dir()) == ["a", "d", "e"]
    assert folder_bytes(tmp_path) <= 3100


def test_without_a_cache_nothing_stays_on_the_disk(
    tokenizer: PreTrainedTokenizerBase, training_rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    examples = load_examples(training_rows, tokenizer, 64)
    assert list(tmp_path.iterdir()) == []
    assert len(examples.examples) == examples.count == len(examples.lengths)


def test_the_order_of_rows_is_that_of_earlier_versions() -> None:
    """A run that another version has begun resumes with the same rows."""
    sampler = StepSampler([(7 * i) % 13 for i in range(10)], 4, seed=3)
    sampler.set_epoch(1)
    assert list(sampler) == [9, 5, 1, 6, 3, 8, 4, 0, 7, 2]


def test_a_second_start_reports_the_same_findings_and_reads_no_row(
    starter: Path, write_rows: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"question": "What is 2 + 2?", "answer": "The answer is four, and it always has been. #### 4"}
    dataset = write_rows([row] * 20)
    config = SftConfig(base=str(starter), dataset=dataset)
    tokenizer = load_tokenizer(str(starter))
    monkeypatch.setattr(stored_findings, "MIN_FORKED_BYTES", 1)
    examples = load_examples(dataset, tokenizer, config.max_length, cache=RowCache(tmp_path))
    first = list(check_stage(config, tokenizer, examples))
    assert {"duplicates", "completion_repeated"} <= {one.code for one in first}
    monkeypatch.setattr(stored_findings, "_run_in_children", lambda _: pytest.fail("checked again"))
    assert list(check_stage(config, tokenizer, examples)) == first


def test_the_error_of_a_check_in_a_child_is_raised(tmp_path: Path) -> None:
    def fail() -> list[Finding]:
        raise DatasetInvalid("No.", "Yes.")

    with pytest.raises(DatasetInvalid, match=r"No\."):
        find_once(tmp_path, "key", [list, fail], 2**30)
    assert list(tmp_path.iterdir()) == []


def test_findings_are_not_those_of_a_base_that_was_corrected_since(
    starter: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(starter, base)
    settings = base / "config.json"
    correct = settings.read_text()
    dataset = write_rows([{"prompt": "What is 2 + 2?", "completion": "It is 4."}])
    config = SftConfig(base=str(base), dataset=dataset)

    def find() -> set[str]:
        tokenizer = load_tokenizer(str(base))
        examples = load_examples(dataset, tokenizer, config.max_length, cache=RowCache(tmp_path / "rows"))
        return {one.code for one in check_stage(config, tokenizer, examples)}

    settings.write_text(json.dumps(json.loads(correct) | {"max_position_embeddings": 8}))
    assert FindingCode.length_beyond_model in find()
    settings.write_text(correct)
    assert FindingCode.length_beyond_model not in find()


def test_a_cache_that_cannot_be_written_is_replaced_by_one_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    monkeypatch.setenv(FOLDER_VARIABLE, str(occupied))
    assert cache_of_process(tmp_path / "run").folder == tmp_path / "run" / RUN_FOLDER


def test_a_full_disk_is_reported_as_such(
    tokenizer: PreTrainedTokenizerBase, training_rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_root("mount a small disk to fill")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    monkeypatch.setattr(open_rows, "MIN_PROGRAM_BYTES", 1)
    try:
        with pytest.raises(ProgramError) as raised:
            load_examples(training_rows, tokenizer, 64, cache=RowCache(small))
        assert raised.value.code is ErrorCode.disk_full
        assert not list(small.glob(".*.tmp"))
    finally:
        subprocess.run(["umount", str(small)], check=True)
