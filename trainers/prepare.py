"""Make datasets for training, and render their first rows with a model's template.

Rows are read one at a time, rewritten by a recipe, filtered, converted and split. The parts are written to
`datasets/` in the run directory, and each dropped row to `drops.jsonl` with its line and reason.

    python -m trainers.prepare --config prepare.yaml --run-dir runs/prepared
"""

from collections.abc import Callable, Iterator
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
from trainers.data.filters.held_out import drop_held_out
from trainers.data.filters.near_duplicates import drop_near_duplicates
from trainers.data.filters.pair_cleaning import TranslationReport
from trainers.data.filters.row_filters import (
    NumberedRows,
    drop_duplicates,
    filter_by_characters,
    filter_by_tokens,
)
from trainers.data.fingerprint import prompt_text, text_digest
from trainers.data.formats import Row, RowFormat, detect_format
from trainers.data.recipes import gsm8k
from trainers.data.recipes.filtered_translation import filtered_translation_rows
from trainers.data.splits import SplitReport, split_file
from trainers.data.validate import validate_file
from trainers.preflight.findings import findings_to_json
from trainers.rendering.omissions.counts import OmissionCounts
from trainers.rendering.omissions.search import find_omissions
from trainers.rendering.preview import preview_example
from trainers.rendering.render import (
    RowTooLong,
    dataset_path,
    parse_prompt_completions,
    read_rows,
    read_turns,
    render_document,
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


def run(config: PrepareConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Write the datasets, render the first rows if the config names a base, and return the result."""
    result: dict[str, Any] = {"stage": "prepare"}
    if config.makes_datasets:
        result |= _make_datasets(config, run_dir, events)
        first = result["datasets"][0]
        if config.base is not None:
            result |= _render_first_rows(config, run_dir / first["path"], events)
    elif config.base is not None:
        result |= _render_first_rows(config, _dataset_path(config), events)
    return result


def plan(config: PrepareConfig) -> dict[str, Any]:
    """Return the parts that would be written, or how many rows would be rendered."""
    if config.base is not None:
        _load_tokenizer(config)
    planned: dict[str, Any] = {"stage": "prepare", "parts": config.parts}
    if not config.makes_datasets:
        planned["rows"] = len(list(read_turns(_dataset_path(config), config.rows)))
    return planned


def _dataset_path(config: PrepareConfig) -> Path:
    assert config.dataset is not None, "the config names a source or a dataset"
    return dataset_path(config.dataset)


def _make_datasets(config: PrepareConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    (run_dir / DROPS).unlink(missing_ok=True)
    with (run_dir / DROPS).open("w", encoding="utf-8") as lines:
        drops = DropRecorder(write=lambda drop: lines.write(drop.model_dump_json() + "\n"))
        try:
            rows, recipe_report = _apply_recipe(config, drops, events)
            split = _write_parts(config, folder, _filter_rows(config, rows, drops))
        except ValueError as error:
            raise DatasetInvalid(f"The rows cannot be prepared: {error}", "Correct the named row.") from error
    dropped = drops.report()
    if isinstance(recipe_report, TranslationReport) and recipe_report.unlike_targets:
        events.write_warning("unlike_targets", recipe_report.describe_unlike())
    if split is None and dropped.dropped == 0 and isinstance(config.recipe, OnPolicyPairsRecipe):
        raise DatasetInvalid(
            "No pairs were made: no prompt has two completions whose rewards differ by at least the margin.",
            "Raise num_generations, temperature or max_rows, and max_new_tokens if completions are cut off.",
        )
    if split is None:
        raise DatasetInvalid(
            f"No rows are left: {dropped.dropped} were dropped.",
            f"The reasons are in {DROPS}. Relax the filters, or correct the source.",
        )
    return {
        "datasets": [_describe_part(run_dir, part, rows) for part, rows in split.rows.items()],
        "split": split.model_dump(mode="json"),
        "drops": dropped.model_dump(mode="json"),
        "recipe": recipe_report.model_dump(mode="json") if recipe_report else None,
    }


def _apply_recipe(
    config: PrepareConfig, drops: DropRecorder, events: EventWriter
) -> tuple[Iterator[tuple[int, Row]], BaseModel | None]:
    """Return rows with the line that each comes from, and a report that is complete once they are read."""
    recipe = config.recipe
    if isinstance(recipe, TranslationRecipe):
        assert config.source is not None
        translations = TranslationReport()
        pairs = read_sentence_pairs(config.source, drops)
        return filtered_translation_rows(recipe, pairs, drops, translations), translations
    if isinstance(recipe, OnPolicyPairsRecipe):
        from trainers.rendering.on_policy_pairs import generate_on_policy_pairs

        assert config.base is not None
        return generate_on_policy_pairs(recipe, config.base, _dataset_path(config), events)
    rows = read_source_rows(config.source) if config.source else read_rows(_dataset_path(config))
    if isinstance(recipe, MathsPairsRecipe):
        report = gsm8k.PairReport()
        return _make_maths_pairs(recipe, rows, report), report
    if isinstance(recipe, MathsSftRecipe | MathsPromptsRecipe):
        return _make_maths_rows(recipe, rows), None
    return rows, None


def _make_maths_rows(
    recipe: MathsSftRecipe | MathsPromptsRecipe, rows: NumberedRows
) -> Iterator[tuple[int, Row]]:
    for line, row in rows:
        if isinstance(recipe, MathsPromptsRecipe):
            converted = gsm8k.grpo_rows([(line, row)], system=recipe.system)
        else:
            converted = gsm8k.sft_rows([(line, row)], annotations=recipe.annotations, system=recipe.system)
        yield line, next(converted)


def _make_maths_pairs(
    recipe: MathsPairsRecipe, rows: NumberedRows, report: gsm8k.PairReport
) -> Iterator[tuple[int, Row]]:
    pairs = gsm8k.preference_rows(
        gsm8k.parse_problems(rows),
        report,
        pairs_per_problem=recipe.pairs_per_problem,
        seed=recipe.seed,
        annotations=recipe.annotations,
        system=recipe.system,
    )
    return ((row["line"], row) for row in pairs)


def _filter_rows(
    config: PrepareConfig, rows: Iterator[tuple[int, Row]], drops: DropRecorder
) -> Iterator[Row]:
    """Yield the rows that all filters keep, in the shape `convert_to`."""
    first = next(rows, None)
    if first is None:
        return
    row_format = detect_format(first[1])
    if row_format is None:
        fields = ", ".join(first[1]) or "none"
        raise ValueError(f"Row {first[0]} has no known format; its fields are {fields}. Choose a recipe.")
    kept: NumberedRows = chain([first], rows)
    for chosen in config.filters:
        kept = _apply_filter(chosen, kept, drops, row_format, config)
    for line, row in kept:
        yield row if config.convert_to is None else _convert(line, row, config.convert_to)


def _apply_filter(
    chosen: Filter, rows: NumberedRows, drops: DropRecorder, row_format: RowFormat, config: PrepareConfig
) -> NumberedRows:
    match chosen:
        case LengthFilter(kind="characters"):
            return filter_by_characters(
                rows, drops, row_format, minimum=chosen.minimum, maximum=chosen.maximum
            )
        case LengthFilter():
            counter = _token_counter(config, chosen.maximum or chosen.minimum)
            return filter_by_tokens(rows, drops, counter, minimum=chosen.minimum, maximum=chosen.maximum)
        case DuplicatesFilter():
            return drop_duplicates(rows, drops, row_format)
        case NearDuplicatesFilter():
            return drop_near_duplicates(rows, drops, row_format, threshold=chosen.threshold)
        case HeldOutFilter():
            held_out = [dataset_path(reference) for reference in chosen.not_in]
            return drop_held_out(rows, drops, row_format, held_out, threshold=chosen.threshold)


def _token_counter(config: PrepareConfig, bound: int) -> Callable[[Row], int]:
    """Return a function that counts the tokens of a row's longest conversation, without truncation.

    A row that certainly has more than `bound` tokens is not tokenized.
    """
    tokenizer = _load_tokenizer(config)

    def count(row: Row) -> int:
        pairs = parse_prompt_completions(0, row, Path("the source"))
        try:
            return max(render_example(pair, tokenizer, bound).length for pair in pairs)
        except RowTooLong as error:
            return error.min_tokens

    return count


def _load_tokenizer(config: PrepareConfig) -> "PreTrainedTokenizerBase":
    # Importing torch and transformers takes seconds, and a config without a base does not need them.
    from trainers.modeling.load import load_tokenizer

    assert config.base is not None
    return load_tokenizer(config.base, config.template)


def _convert(line: int, row: Row, target: RowShape) -> Row:
    shape = detect_shape(row)
    try:
        if shape is None:
            raise ValueError("its format is unknown")
        return convert_row(row, shape, target)
    except ValueError as error:
        raise ValueError(f"Row {line} cannot be converted to {target}: {error}") from error


def _write_parts(config: PrepareConfig, folder: Path, rows: Iterator[Row]) -> SplitReport | None:
    """Write the parts; return None if there are no rows."""
    whole = folder / f"{DatasetPart.train}.jsonl"
    count = save_rows(whole, rows)
    if not count:
        return None
    if config.split is None:
        return SplitReport(seed=0, rows={DatasetPart.train: count}, distinct_rows={})
    sizes = config.split
    unsplit = whole.rename(folder / "unsplit.jsonl")
    report = split_file(
        unsplit, folder, validation=sizes.validation, test=sizes.test, seed=sizes.seed, group_of=_split_group
    )
    unsplit.unlink()
    return report


def _split_group(row: Row) -> Any:
    """Return a key; rows with the same key must be in one part, or one would give away the other.

    Rows of one prompt have the same key, as people read it.
    """
    if "pair" in row and "direction" in row:
        return row["pair"]  # Both directions of a translation.
    row_format = detect_format(row)
    return text_digest(prompt_text(row, row_format)).hex() if row_format else row


def _describe_part(run_dir: Path, part: DatasetPart, rows: int) -> dict[str, Any]:
    """Return a part as the result describes it; raises DatasetInvalid if validation finds a fault."""
    path = f"{FOLDER}/{part}.jsonl"
    found = validate_file(run_dir / path, max_faults=1)
    if found.fault_count:
        raise DatasetInvalid(
            f"The part {part} has {rows} rows and {found.fault_count} faults. {found.faults[0].message}",
            "Validate the source to list every fault with its row, or filter these rows.",
        )
    return {"part": part, "path": path, "rows": rows, "format": found.format}


def _render_first_rows(config: PrepareConfig, dataset: Path, events: EventWriter) -> dict[str, Any]:
    """Return the first rows as tokens, with one entry for each completion, and what they lack."""
    from trainers.modeling.load import template_sha256
    from trainers.preflight.omission_findings import check_omissions

    tokenizer = _load_tokenizer(config)
    turns = list(read_turns(dataset, config.rows))
    if not turns:
        raise DatasetInvalid(f"The dataset {dataset} has no rows to render.", "Add rows.")
    rows, omissions = [], OmissionCounts()
    for done, pairs in enumerate(turns, start=1):
        if pairs[0].is_document:
            examples = render_document(pairs[0], tokenizer, config.max_length)
        else:
            examples = [render_example(pair, tokenizer, config.max_length) for pair in pairs]
            omissions.add(pairs[0].row, find_omissions(pairs, [example.text for example in examples]))
        shown = [preview_example(example, turn, tokenizer) for turn, example in enumerate(examples, start=1)]
        if detect_format(pairs[0].source) is RowFormat.preference:
            shown = [
                row | {"turn": 1, "side": side}
                for row, side in zip(shown, ("chosen", "rejected"), strict=True)
            ]
        rows += shown
        events.write_progress(done, len(turns))
    return {
        "template_sha256": template_sha256(tokenizer),
        "rows": rows,
        "findings": findings_to_json(check_omissions(omissions)),
    }


if __name__ == "__main__":
    run_program(PrepareConfig, run, plan)
