"""Comparison of an engine's embeddings with those of the model on the CPU in fp32.

The reference is the model of our own engine, so that for `hf` the comparison finds a device, a precision or a
batch that changes embeddings, and for the other engines also another pooling, normalization or tokenization.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from serving.engines.embedding.inputs import tokenize_texts
from serving.engines.embedding.model import load_embedding_model
from serving.engines.engine import Engine
from serving.engines.openai_server.prompt_queue import PromptWorker
from serving.http.errors import ContextLengthExceeded
from trainers.configs.engines import EngineOptions, Pooling
from trainers.rendering.template_renderer import TemplateRenderer

# These cover several languages, lengths, and white space at the edges.
STANDARD_TEXTS: Sequence[str] = (
    "Hello! What can you do?",
    "한국의 수도는 어디인가요?",
    "The invoice of March is missing. Please send it again, with the number of the order.",
    "  Good morning, everyone.\n",
    "1 + 1",
)


@dataclass(frozen=True)
class EmbeddingTolerance:
    """How far an embedding may be from the reference: its cosine, and the relative error of its length."""

    min_cosine: float
    max_length_error: float


# Rounding turns an embedding by a small angle; another pooling turns it by a large one.
EMBEDDING_TOLERANCES = {
    "float32": EmbeddingTolerance(0.9999, 0.005),
    "float16": EmbeddingTolerance(0.999, 0.02),
    "bfloat16": EmbeddingTolerance(0.99, 0.05),
    "fp8": EmbeddingTolerance(0.95, 0.15),
    "int8": EmbeddingTolerance(0.95, 0.15),
    "awq": EmbeddingTolerance(0.9, 0.3),
    "gptq": EmbeddingTolerance(0.9, 0.3),
}


@dataclass
class EmbeddingDifference:
    """The text whose embedding differs most, counted from 0."""

    message: str
    text: int


@dataclass
class EmbeddingReport:
    """The result of a comparison."""

    passed: bool = False
    texts: int = 0
    dimensions: int = 0
    min_cosine: float = 0.0
    max_length_error: float = 0.0
    tolerance: EmbeddingTolerance = field(default_factory=lambda: EMBEDDING_TOLERANCES["float32"])
    difference: EmbeddingDifference | None = None
    # A restarted engine is compared again: the reference of a small embedding model loads within seconds.
    spot_check: None = None

    @property
    def json(self) -> dict[str, Any]:
        """The report as it is stored with a deployment."""
        return asdict(self)


def compare_embeddings(
    engine: Engine, address: str, name: str, base: str, pooling: Pooling | None, precision: str
) -> EmbeddingReport:
    """Embed the standard texts with the engine and with the reference.

    Raises:
        EngineRequestFailed: The engine did not respond.
        ModelNotLoadable: The reference cannot be loaded.
    """
    texts, expected_bd = _embed_reference(base, pooling)
    report = EmbeddingReport(
        texts=len(texts),
        dimensions=expected_bd.shape[1],
        tolerance=EMBEDDING_TOLERANCES.get(precision, EMBEDDING_TOLERANCES["bfloat16"]),
    )
    found_bd = torch.tensor(engine.embed(address, name, texts))
    if found_bd.shape != expected_bd.shape:
        message = (
            f"Embeddings have {found_bd.shape[1]} dimensions; the model computes {expected_bd.shape[1]}."
        )
        report.difference = EmbeddingDifference(message, 0)
        return report
    cosine_b = torch.nn.functional.cosine_similarity(found_bd, expected_bd)
    error_b = (found_bd.norm(dim=-1) / expected_bd.norm(dim=-1) - 1).abs()
    report.min_cosine, report.max_length_error = float(cosine_b.min()), float(error_b.max())
    report.difference = _find_difference(report, int(cosine_b.argmin()), int(error_b.argmax()))
    report.passed = report.difference is None
    return report


def _embed_reference(base: str, pooling: Pooling | None) -> tuple[list[str], torch.Tensor]:
    """Return the texts that fit into the model's window, and their embeddings (b, d)."""
    options = EngineOptions(dtype="float32")
    model = load_embedding_model(base, base, options, pooling, device=torch.device("cpu"))
    worker = PromptWorker(TemplateRenderer(), lambda: False)
    texts, rows = [], []
    for text in STANDARD_TEXTS:
        with suppress(ContextLengthExceeded), torch.inference_mode():
            rows.append(model.embed(tokenize_texts(worker, model, [text])))
            texts.append(text)
    return texts, torch.cat(rows)


def _find_difference(report: EmbeddingReport, turned: int, stretched: int) -> EmbeddingDifference | None:
    tolerance = report.tolerance
    if report.min_cosine < tolerance.min_cosine:
        return EmbeddingDifference(
            f"An embedding has the cosine {report.min_cosine:.4f} with that of the model, below "
            f"{tolerance.min_cosine}: the engine pools or tokenizes in another way.",
            turned,
        )
    if report.max_length_error > tolerance.max_length_error:
        return EmbeddingDifference(
            f"The length of an embedding differs by {report.max_length_error:.1%} from that of the model, "
            f"above {tolerance.max_length_error:.1%}: the engine normalizes in another way.",
            stretched,
        )
    return None
