"""Opening of a dataset's rendered rows, which are built first if no process of this host has built them."""

import logging
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.configs.base import TrainingData
from trainers.rendering.cache.batches import LineRenderer
from trainers.rendering.cache.build import MIN_PROGRAM_BYTES, build_here, build_in_program
from trainers.rendering.cache.folder import RowCache, temporary_cache
from trainers.rendering.cache.mapped import MappedRows
from trainers.rendering.cache.spec import RenderSpec, RowKind, make_spec
from trainers.rendering.cache.tokenize import BatchRenderer, TransformersRenderer, can_batch
from trainers.rendering.plain_text import TemplateMissing
from trainers.rendering.render import (
    PromptCompletion,
    dataset_path,
    read_prompts,
    read_turns,
    require_file,
)
from trainers.runtime.errors import DatasetInvalid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The first rows are rendered in both ways: a tokenizer with a behaviour that we do not know costs speed only.
N_COMPARED_ROWS = 8

logger = logging.getLogger("trainers")


def open_rows(
    kind: RowKind,
    dataset: TrainingData,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    max_rows: int | None = None,
    cache: RowCache | None = None,
) -> MappedRows:
    """Return the rendered rows of a dataset; without a cache, nothing stays on the disk.

    Raises DatasetFileNotFound, DatasetInvalid or ChatTemplateError.
    """
    path = dataset_path(dataset)
    require_file(path)
    spec = make_spec(kind, path, tokenizer, max_length, max_rows)
    with nullcontext(cache) if cache is not None else temporary_cache() as folder:
        return MappedRows(folder.fetch(spec.key(), partial(_build, spec, tokenizer)))


def _build(spec: RenderSpec, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    slow = TransformersRenderer(tokenizer, spec.max_length)
    if not can_batch(tokenizer):
        build_here(spec, LineRenderer(spec.kind, spec.dataset, slow), folder)
        return
    with closing(BatchRenderer(spec, tokenizer.backend_tokenizer)) as batches:
        if spec.dataset.stat().st_size >= MIN_PROGRAM_BYTES and spec.max_rows is None:
            logger.info("Rendering %s, once for all ranks and attempts on this host.", spec.dataset)
            # The rows are compared while the program starts.
            confirm = partial(_are_alike, spec, batches, slow)
            if build_in_program(spec, tokenizer.backend_tokenizer, folder, confirm):
                return
            renderer: BatchRenderer | TransformersRenderer = slow
        else:
            renderer = batches if _are_alike(spec, batches, slow) else slow
        build_here(spec, LineRenderer(spec.kind, spec.dataset, renderer), folder)


def _are_alike(spec: RenderSpec, batches: BatchRenderer, slow: TransformersRenderer) -> bool:
    """Return whether both renderers have the same result for the first rows, or an error that both report."""
    try:
        pairs = _first_pairs(spec)
        if spec.kind.has_prompts_only:
            are_equal = batches.prompts(pairs) == slow.prompts(pairs)
        else:
            are_equal = batches.examples(pairs) == slow.examples(pairs)
    except (DatasetInvalid, TemplateMissing):
        return True  # The build reports the row.
    if not are_equal:
        logger.warning("The tokenizer of %s is used row by row, which is slower.", spec.dataset)
    return are_equal


def _first_pairs(spec: RenderSpec) -> list[PromptCompletion]:
    if spec.kind.has_prompts_only:
        return list(read_prompts(str(spec.dataset), N_COMPARED_ROWS))
    return [pair for pairs in read_turns(spec.dataset, N_COMPARED_ROWS) for pair in pairs]
