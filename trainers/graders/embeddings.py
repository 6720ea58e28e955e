"""Cosine of the embeddings of two texts."""

import math
from collections.abc import Sequence
from typing import Any

from trainers.graders.result import GradeFailed, GraderErrors
from trainers.metrics.judge.requests import EndpointClient, NoResponse, RequestRejected


def cosine_similarity(client: EndpointClient, text: str, reference: str) -> float:
    """Return the cosine of the embeddings of two texts, from -1 to 1; raises GradeFailed."""
    if not text or not reference:
        # Endpoints refuse an empty text.
        return float(text == reference)
    try:
        response = client.post("embeddings", {"input": [text, reference]})
        first, second = (_read_vector(one) for one in _read_data(response.json()))
    except (RequestRejected, NoResponse) as error:
        raise _fail(str(error), is_silent=isinstance(error, NoResponse)) from None
    except (ValueError, LookupError, TypeError):
        raise _fail(f"not two embeddings: {response.text[:200]}") from None
    norm = math.hypot(*first) * math.hypot(*second)
    if not norm or len(first) != len(second):
        raise _fail("the embeddings are zero, or of different lengths")
    product = sum(one * other for one, other in zip(first, second, strict=True))
    return max(-1.0, min(1.0, product / norm))


def _read_data(content: Any) -> Sequence[Any]:
    data = sorted(content["data"], key=lambda one: one["index"])
    if len(data) != 2:
        raise ValueError("there are not two embeddings")
    return data


def _read_vector(one: Any) -> list[float]:
    return [float(value) for value in one["embedding"]]


def _fail(reason: str, is_silent: bool = False) -> GradeFailed:
    errors = GraderErrors(
        model_grader_server_error=True,
        model_grader_server_error_details=reason,
        unresponsive_reward_error=is_silent,
    )
    return GradeFailed(f"the embedding model gave no embeddings: {reason}", errors)
