"""Opening of a dataset's rendered rows, which are built first if no process of this host has built them."""

import logging
from contextlib import nullcontext
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
    renderer = _find_renderer(spec, tokenizer)
    try:
        is_large = spec.dataset.stat().st_size >= MIN_PROGRAM_BYTES and spec.max_rows is None
        if is_large and isinstance(renderer, BatchRenderer):
            logger.info("Rendering %s, once for all ranks and attempts on this host.", spec.dataset)
            build_in_program(spec, tokenizer.backend_tokenizer, folder)
        else:
            build_here(spec, LineRenderer(spec.kind, spec.dataset, renderer), folder)
    finally:
        if isinstance(renderer, BatchRenderer):
            renderer.close()


def _find_renderer(
    spec: RenderSpec, tokenizer: "PreTrainedTokenizerBase"
) -> BatchRenderer | TransformersRenderer:
    slow = TransformersRenderer(tokenizer, spec.max_length)
    if not can_batch(tokenizer):
        return slow
    renderer = BatchRenderer(spec, tokenizer.backend_tokenizer)
    try:
        pairs = _first_pairs(spec)
        if spec.kind.has_prompts_only:
            are_equal = renderer.prompts(pairs) == slow.prompts(pairs)
        else:
            are_equal = renderer.examples(pairs) == slow.examples(pairs)
    except (DatasetInvalid, TemplateMissing):
        return renderer  # The build reports the row.
    except BaseException:
        renderer.close()
        raise
    if not are_equal:
        logger.warning("The tokenizer %s is used row by row, which is slower.", type(tokenizer).__name__)
        renderer.close()
    return renderer if are_equal else slow


def _first_pairs(spec: RenderSpec) -> list[PromptCompletion]:
    if spec.kind.has_prompts_only:
        return list(read_prompts(str(spec.dataset), N_COMPARED_ROWS))
    return [pair for pairs in read_turns(spec.dataset, N_COMPARED_ROWS) for pair in pairs]
