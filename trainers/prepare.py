"""Make datasets that are ready to train on, and show what a model's template makes of their first rows.

Rows are read one at a time, rewritten by a recipe, filtered, converted and split; the parts appear under
`datasets/` in the run directory, and every row that was dropped in `drops.jsonl` with its line and reason.

    python -m trainers.prepare --config prepare.yaml --run-dir runs/prepared
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from trainers.configs.base import DatasetPart
from trainers.configs.recipes import (
    DuplicatesFilter,
    Filter,
    HeldOutFilter,
    LengthFilter,
    MathsPairsRecipe,
    MathsPromptsRecipe,
    MathsSftRecipe,
    NearDuplicatesFilter,
    OnPolicyPairsRecipe,
    TranslationRecipe,
)
from trainers.configs.stages.prepare import PrepareConfig
from trainers.data.convert import RowShape, convert_row, detect_shape
from trainers.data.files.jsonl import save_rows
from trainers.data.filters.drops import DropRecorder
from trainers.data.filters.pair_filters import (
    drop_identical_sides,
    filter_by_language,
    filter_by_length_ratio,
)
from trainers.data.filters.row_filters import (
    NumberedRows,
    drop_duplicates,
    filter_by_characters,
    filter_by_tokens,
)
from trainers.data.fingerprint import prompt_text
from trainers.data.formats import Row, RowFormat, detect_format
from trainers.data.recipes import gsm8k
from trainers.data.recipes.translation import translation_rows
from trainers.data.splits import SplitReport, split_file
from trainers.data.validate import validate_file
from trainers.rendering.preview import preview_example
from trainers.rendering.render import (
    dataset_path,
    parse_prompt_completions,
    read_prompt_completions,
    read_rows,
    render_example,
)
from trainers.rendering.sources import read_sentence_pairs, read_source_rows
from trainers.runtime.errors import DatasetInvalid
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = "datasets"
DROPS = "drops.jsonl"


def prepare(config: PrepareConfig, run_dir: Path, report: EventWriter) -> dict[str, Any]:
    """Write the datasets that are asked for, and render the first rows if there is a base."""
    result: dict[str, Any] = {"stage": "prepare"}
    first = config.dataset
    if config.makes_datasets:
        made = _make_datasets(config, run_dir, report)
        result |= made
        first = str(run_dir / made["datasets"][0]["path"])
        if made["datasets"][0]["format"] == RowFormat.preference:
            return result
    if config.base is not None:
        result |= _rendered(config, str(dataset_path(first)), report)
    return result


def plan(config: PrepareConfig) -> dict[str, Any]:
    """What would be made; nothing is read but the tokenizer."""
    if config.base is not None:
        _tokenizer(config)
    shown_rows = (
        {}
        if config.makes_datasets
        else {"rows": sum(1 for _ in read_prompt_completions(config.dataset, config.rows))}
    )
    return {"stage": "prepare", "parts": config.parts, **shown_rows}


def _make_datasets(config: PrepareConfig, run_dir: Path, report: EventWriter) -> dict[str, Any]:
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    (run_dir / DROPS).unlink(missing_ok=True)
    with (run_dir / DROPS).open("w", encoding="utf-8") as lines:
        drops = DropRecorder(write=lambda drop: lines.write(drop.model_dump_json() + "\n"))
        try:
            rows, told = _recipe_rows(config, drops, report)
            split = _write(config, folder, _filtered(config, rows, drops))
        except ValueError as error:
            raise DatasetInvalid(f"The rows cannot be prepared: {error}", "Correct the named row.") from error
    dropped = drops.report()
    if split is None:
        raise DatasetInvalid(
            f"No row is left: {dropped.dropped} were dropped.",
            f"The reasons are in {DROPS}; loosen the filters or correct the source.",
        )
    return {
        "datasets": [_described(run_dir, part, rows) for part, rows in split.rows.items()],
        "split": split.model_dump(mode="json"),
        "drops": dropped.model_dump(mode="json"),
        "recipe": told.model_dump(mode="json") if told else None,
    }


def _recipe_rows(
    config: PrepareConfig, drops: DropRecorder, report: EventWriter
) -> tuple[Iterator[tuple[int, Row]], BaseModel | None]:
    """Rows with the line that each comes from, and a report of the recipe that grows as they are read."""
    recipe = config.recipe
    if isinstance(recipe, TranslationRecipe):
        assert config.source is not None
        return _translations(recipe, read_sentence_pairs(config.source, drops), drops), None
    if isinstance(recipe, OnPolicyPairsRecipe):
        from trainers.rendering.on_policy_pairs import generate_on_policy_pairs

        assert config.base is not None
        return generate_on_policy_pairs(recipe, config.base, dataset_path(config.dataset), report)
    rows = read_source_rows(config.source) if config.source else read_rows(dataset_path(config.dataset))
    if isinstance(recipe, MathsPairsRecipe):
        told = gsm8k.PairReport()
        return _maths_pairs(recipe, rows, told), told
    if isinstance(recipe, MathsSftRecipe | MathsPromptsRecipe):
        return _maths_rows(recipe, rows), None
    return rows, None


def _maths_rows(recipe: MathsSftRecipe | MathsPromptsRecipe, rows: NumberedRows) -> Iterator[tuple[int, Row]]:
    for line, row in rows:
        if isinstance(recipe, MathsPromptsRecipe):
            made = gsm8k.grpo_rows([(line, row)], system=recipe.system)
        else:
            made = gsm8k.sft_rows([(line, row)], annotations=recipe.annotations, system=recipe.system)
        yield line, next(made)


def _translations(recipe: TranslationRecipe, pairs: Any, drops: DropRecorder) -> Iterator[tuple[int, Row]]:
    pairs = drop_identical_sides(pairs, drops)
    if recipe.check_language:
        pairs = filter_by_language(pairs, drops)
    if recipe.check_length:
        pairs = filter_by_length_ratio(pairs, drops)
    rows = translation_rows(pairs, directions=recipe.directions, wordings=recipe.wordings, seed=recipe.seed)
    return ((row["line"], row) for row in rows)


def _maths_pairs(
    recipe: MathsPairsRecipe, rows: NumberedRows, told: gsm8k.PairReport
) -> Iterator[tuple[int, Row]]:
    made = gsm8k.preference_rows(
        gsm8k.parse_problems(rows),
        told,
        pairs_per_problem=recipe.pairs_per_problem,
        seed=recipe.seed,
        annotations=recipe.annotations,
        system=recipe.system,
    )
    return ((row["line"], row) for row in made)


def _filtered(config: PrepareConfig, rows: Iterator[tuple[int, Row]], drops: DropRecorder) -> Iterator[Row]:
    """The rows that every filter keeps, in the asked shape."""
    first = next(rows, None)
    if first is None:
        return
    row_format = detect_format(first[1])
    if row_format is None:
        fields = ", ".join(first[1]) or "none"
        raise ValueError(f"Row {first[0]} has no known format; its fields are {fields}. Choose a recipe.")
    kept: NumberedRows = chain([first], rows)
    for chosen in config.filters:
        kept = _filter(chosen, kept, drops, row_format, config)
    for line, row in kept:
        yield row if config.convert_to is None else _converted(line, row, config.convert_to)


def _filter(
    chosen: Filter, rows: NumberedRows, drops: DropRecorder, row_format: RowFormat, config: PrepareConfig
) -> NumberedRows:
    match chosen:
        case LengthFilter(kind="characters"):
            return filter_by_characters(
                rows, drops, row_format, minimum=chosen.minimum, maximum=chosen.maximum
            )
        case LengthFilter():
            count = _token_counter(config)
            return filter_by_tokens(rows, drops, count, minimum=chosen.minimum, maximum=chosen.maximum)
        case DuplicatesFilter():
            return drop_duplicates(rows, drops, row_format)
        case NearDuplicatesFilter():
            from trainers.data.filters.near_duplicates import drop_near_duplicates

            return drop_near_duplicates(rows, drops, row_format, threshold=chosen.threshold)
        case HeldOutFilter():
            from trainers.data.filters.held_out import drop_held_out

            held_out = [dataset_path(reference) for reference in chosen.not_in]
            return drop_held_out(rows, drops, row_format, held_out, threshold=chosen.threshold)


def _token_counter(config: PrepareConfig) -> Any:
    """Tokens of a row's longest rendered conversation, as training would see it uncut."""
    tokenizer = _tokenizer(config)

    def count(row: Row) -> int:
        pairs = parse_prompt_completions(0, row, Path("the source"))
        return max(len(render_example(pair, tokenizer, 10**9).input_ids) for pair in pairs)

    return count


def _tokenizer(config: PrepareConfig) -> "PreTrainedTokenizerBase":
    # torch and its kin take seconds to import, for which rows alone need not wait.
    from trainers.modeling.load import load_tokenizer

    assert config.base is not None
    return load_tokenizer(config.base)


def _converted(line: int, row: Row, target: RowShape) -> Row:
    shape = detect_shape(row)
    try:
        if shape is None:
            raise ValueError("it has no known format")
        return convert_row(row, shape, target)
    except ValueError as error:
        raise ValueError(f"Row {line} cannot be written as {target}: {error}") from error


def _write(config: PrepareConfig, folder: Path, rows: Iterator[Row]) -> SplitReport | None:
    """Write the parts; None if there is no row."""
    whole = folder / f"{DatasetPart.train}.jsonl"
    count = save_rows(whole, rows)
    if not count:
        return None
    if config.split is None:
        return SplitReport(seed=0, rows={DatasetPart.train: count}, distinct_rows={})
    sizes = config.split
    every = whole.rename(folder / "every.jsonl")
    report = split_file(
        every, folder, validation=sizes.validation, test=sizes.test, seed=sizes.seed, group_of=_group
    )
    every.unlink()
    return report


def _group(row: Row) -> Any:
    """What must not be torn apart by a split: the directions of a translation, the pairs of a prompt."""
    if "pair" in row and "direction" in row:
        return row["pair"]
    row_format = detect_format(row)
    return prompt_text(row, row_format) if row_format is RowFormat.preference else row


def _described(run_dir: Path, part: DatasetPart, rows: int) -> dict[str, Any]:
    """A part as the result names it; raises DatasetInvalid if our own validation would refuse it."""
    path = f"{FOLDER}/{part}.jsonl"
    found = validate_file(run_dir / path, max_faults=1)
    if found.fault_count:
        raise DatasetInvalid(
            f"Of the {part} part's {rows} rows {found.fault_count} have a fault. {found.faults[0].message}",
            "Validate the source, which lists every fault with its row, or filter such rows.",
        )
    return {"part": part, "path": path, "rows": rows, "format": found.format}


def _rendered(config: PrepareConfig, dataset: str, report: EventWriter) -> dict[str, Any]:
    """The first rows in tokens; a conversation of several turns gives one entry per assistant turn."""
    from trainers.modeling.load import template_sha256

    tokenizer = _tokenizer(config)
    turns = list(read_prompt_completions(dataset, config.rows))
    if not turns:
        raise DatasetInvalid(f"The dataset {dataset} has no rows to show.", "Add rows.")
    rows = []
    for done, pairs in enumerate(turns, start=1):
        examples = [render_example(pair, tokenizer, config.max_length) for pair in pairs]
        rows += [preview_example(example, turn, tokenizer) for turn, example in enumerate(examples, start=1)]
        report.progress(done, len(turns))
    return {"template_sha256": template_sha256(tokenizer), "rows": rows}


if __name__ == "__main__":
    run_program(PrepareConfig, prepare, plan)
