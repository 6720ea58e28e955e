"""Embeddings of our own engine.

Goal: the embeddings are those that the model's authors mean, whatever else is in the batch, and a request
that cannot be served is refused by name. Method: tiny models of three architectures behind the real server;
the expected embeddings are computed with plain transformers.
"""

import base64
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from serving.engines.decoding.base import ModelNotLoadable
from serving.engines.embedding.loop import MAX_BATCH_TOKENS, EmbeddingLoop, EmbeddingWork, choose_batch
from serving.engines.embedding.model import TokenizedText, load_embedding_model
from tests.integration.serving.embedding.embedding_server import serve_model
from tests.integration.serving.embedding.tiny_models import SIZE, WINDOW, build_models
from trainers.configs.engines import EngineOptions, Pooling

TEXTS = [
    "the cat sat on the mat",
    "a dog",
    "good morning the sun is bright in rain today",
    "rain",
    "unknown cat",
]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    build_models(folder)
    return folder


@pytest.fixture(scope="module")
def servers(models: Path) -> Iterator[dict[str, str]]:
    """Yield the URL of a server for each model."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(serve_model(models / name, name)) for name in ("bert", "xlmr", "qwen")
        }


def post(servers: dict[str, str], model: str, path: str = "/v1/embeddings", **body: Any) -> tuple[int, Any]:
    response = httpx2.post(servers[model] + path, json={"model": model, **body}, timeout=120)
    return response.status_code, response.json()


def embed(servers: dict[str, str], model: str, texts: Any, **body: Any) -> torch.Tensor:
    status, response = post(servers, model, input=texts, **body)
    assert status == 200, response
    return torch.tensor([row["embedding"] for row in response["data"]])


@torch.inference_mode()  # type: ignore[untyped-decorator]
def expect(folder: Path, text: str) -> torch.Tensor:
    """Compute one embedding with plain transformers, without padding."""
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    if folder.name == "xlmr":
        encoded = tokenizer(f"search query {text}", return_tensors="pt")
        pooled = network(**encoded).last_hidden_state[0, 3:]
        pooled = torch.cat([pooled.max(dim=0).values, pooled.mean(dim=0)])
        pooled = torch.cat([pooled[SIZE:], pooled[:SIZE]])
        dense = load_file(folder / "2_Dense" / "model.safetensors")
        return torch.tanh(dense["linear.weight"] @ pooled + dense["linear.bias"])
    states = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    pooled = states.mean(dim=0) if folder.name == "bert" else states[-1]
    return pooled / pooled.norm()


@pytest.mark.parametrize("name", ["bert", "xlmr", "qwen"])
def test_embeddings_equal_those_of_plain_transformers_alone_and_in_a_batch(
    servers: dict[str, str], models: Path, name: str
) -> None:
    expected = torch.stack([expect(models / name, text) for text in TEXTS])
    together = embed(servers, name, TEXTS)
    alone = torch.cat([embed(servers, name, text) for text in TEXTS])
    assert (together - expected).abs().max() < TOLERANCE
    assert (alone - expected).abs().max() < TOLERANCE


def test_concurrent_requests_share_batches_and_get_their_own_embeddings(servers: dict[str, str]) -> None:
    alone = embed(servers, "qwen", TEXTS)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda text: embed(servers, "qwen", text), TEXTS * 4))
    assert (torch.cat(found) - alone.repeat(4, 1)).abs().max() < TOLERANCE


def test_token_ids_are_read_as_they_are(servers: dict[str, str]) -> None:
    ids = post(servers, "bert", "/tokenize", prompt=TEXTS[0])[1]["tokens"]
    expected = embed(servers, "bert", TEXTS[0])
    assert torch.equal(embed(servers, "bert", ids), expected)
    both = embed(servers, "bert", [ids, ids[:-1]])
    assert (both[0] - expected[0]).abs().max() < TOLERANCE < (both[1] - expected[0]).abs().max()


def test_base64_has_the_same_values_and_usage_counts_every_token(servers: dict[str, str]) -> None:
    status, response = post(servers, "bert", input=TEXTS[:2], encoding_format="base64", user="me")
    values = [base64.b64decode(row["embedding"]) for row in response["data"]]
    found = torch.stack([torch.frombuffer(bytearray(value), dtype=torch.float32) for value in values])
    assert torch.equal(found, embed(servers, "bert", TEXTS[:2]))
    assert [row["index"] for row in response["data"]] == [0, 1]
    assert (status, response["usage"]) == (200, {"prompt_tokens": 12, "total_tokens": 12})


def test_a_matryoshka_model_returns_fewer_dimensions_of_the_length_1(servers: dict[str, str]) -> None:
    whole, short = embed(servers, "qwen", TEXTS), embed(servers, "qwen", TEXTS, dimensions=16)
    assert (short - torch.nn.functional.normalize(whole[:, :16], dim=-1)).abs().max() < TOLERANCE


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("qwen", {"input": "a", "dimensions": 20}, "dimensions", "supports 16, 32"),
    ("bert", {"input": "a", "dimensions": 16}, "dimensions", "does not declare Matryoshka"),
    ("bert", {"input": ["a", "rain " * 60]}, "input", f"{WINDOW} tokens. However, 'input[1]' has 62 tokens"),
    ("bert", {"input": [[4] * 49]}, "input", "'input[0]' has 49 tokens"),
    ("bert", {"input": ["a", ""]}, "input", "'input[1]' is empty"),
    ("bert", {"input": []}, "input", "at least one text"),
    ("bert", {"input": [[]]}, "input", "'input[0]' is empty"),
    ("bert", {"input": [1, 999]}, "input", "token id 999"),
    ("bert", {"input": ["a"] * 2049}, "input", "at most 2048"),
    ("bert", {"input": ["a", 1]}, "input", "input"),
    ("bert", {"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
    ("bert", {"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "not supported"),
    ("bert", {}, "input", "Field required"),
]


@pytest.mark.parametrize(("model", "body", "param", "message"), REFUSED)
def test_a_request_that_cannot_be_served_is_refused_by_name(
    servers: dict[str, str], model: str, body: dict[str, Any], param: str, message: str
) -> None:
    status, response = post(servers, model, **body)
    assert (status, response["error"]["param"]) == (400, param)
    assert message in response["error"]["message"]


def test_a_request_with_too_many_tokens_is_refused(
    servers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.engines.embedding.inputs.MAX_REQUEST_TOKENS", 20)
    status, response = post(servers, "bert", input=TEXTS)
    assert (status, "more than 20 tokens together" in response["error"]["message"]) == (400, True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_an_embedding_engine_refuses_to_generate(servers: dict[str, str], path: str) -> None:
    status, response = post(servers, "bert", path, messages=[{"role": "user", "content": "x"}])
    assert (status, response["error"]["code"]) == (400, "task_not_served")
    assert "Send its texts to /v1/embeddings" in response["error"]["message"]


def test_the_list_of_models_has_the_task_and_the_window(servers: dict[str, str]) -> None:
    (model,) = httpx2.get(f"{servers['xlmr']}/v1/models", timeout=120).json()["data"]
    assert (model["id"], model["task"], model["max_model_len"]) == ("xlmr", "embed", WINDOW)


def test_a_model_without_a_pooling_of_its_own_needs_one(models: Path) -> None:
    with pytest.raises(ModelNotLoadable, match=r"does not say how .* Set `pooling` to mean, cls or last"):
        load_embedding_model(str(models / "bare"), "bare", EngineOptions(), None)
    with pytest.raises(ModelNotLoadable, match="has its own pooling"):
        load_embedding_model(str(models / "bert"), "bert", EngineOptions(), Pooling.mean)
    model = load_embedding_model(str(models / "bare"), "bare", EngineOptions(), Pooling.last)
    with torch.inference_mode():
        embeddings = model.embed([TokenizedText([5, 6, 7]), TokenizedText([5])])
    assert (embeddings.norm(dim=-1) - 1).abs().max() < TOLERANCE


def test_a_window_above_that_of_the_model_is_refused(models: Path) -> None:
    with pytest.raises(ModelNotLoadable, match=f"more than the {WINDOW} tokens"):
        load_embedding_model(str(models / "xlmr"), "xlmr", EngineOptions(max_model_len=WINDOW + 1), None)


def test_a_batch_has_texts_of_similar_length_and_a_bound_of_tokens() -> None:
    lengths = [10, MAX_BATCH_TOKENS, 11, 9, 300, 10]
    work = EmbeddingWork([TokenizedText([1] * length) for length in lengths], lambda rows: None)
    loop = EmbeddingLoop(lambda: pytest.fail("no model is loaded"), 4)
    loop.submit(work)
    loop._read_inbox()
    assert [waiting.n_tokens for waiting in choose_batch(loop.waiting, 4)] == [10, 10, 11, 9]
    assert [waiting.n_tokens for waiting in choose_batch(loop.waiting[1:], 4)] == [MAX_BATCH_TOKENS]


def test_a_cancelled_request_leaves_the_queue(models: Path) -> None:
    finished: list[torch.Tensor] = []
    loop = EmbeddingLoop(lambda: pytest.fail("no model is loaded"), 1)
    model = load_embedding_model(str(models / "bert"), "bert", EngineOptions(), None)
    left, stays = (EmbeddingWork([TokenizedText([4]), TokenizedText([5])], finished.append) for _ in "ab")
    loop.submit(left)
    loop.submit(stays)
    with torch.inference_mode():
        loop.iterate(model)
        left.cancelled = True
        for _ in stays.texts:
            loop.iterate(model)
    assert (len(finished), len(left.rows), loop.waiting_count) == (1, 1, 0)
