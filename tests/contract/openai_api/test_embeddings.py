"""Embeddings of a deployment with `task: embed`, through OpenAI's client and our own engine.

Goal: the client gets what the engine computes, in both encodings, and a request for the other task is
refused before an engine. Method: a tiny model behind the engine's real server, in a thread of this process.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import BadRequestError, NotFoundError, OpenAI, RateLimitError
from starlette.testclient import TestClient

from app.settings import Settings
from app.storage.database import transaction
from app.tables import Deployment, DeploymentStatus, Scope
from tests.contract.openai_api.talking_engine import TalkingEngine
from tests.contract.openai_api.test_batches import create, line, read, run_next, worker
from tests.integration.serving.embedding.embedding_server import serve_model
from tests.integration.serving.embedding.tiny_models import SIZE, build_qwen
from trainers.configs import EngineKind, EngineTask, Queue
from workers.hosts.worker import WorkerContext

TEXTS = ["the cat sat on the mat", "a dog"]
__all__ = ["worker"]
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "qwen"
    build_qwen(folder)
    return folder


@pytest.fixture(scope="module")
def embedding_engine(model: Path) -> Iterator[str]:
    with serve_model(model, "base") as url:
        yield url


@pytest.fixture
def embedder(settings: Settings, embedding_engine: str) -> str:
    """Return the name of a deployment on the engine."""
    with transaction() as session:
        session.add(
            Deployment(
                name="embedder",
                base="hub/base",
                engine=EngineKind.hf,
                task=EngineTask.embed,
                queue=Queue.cpu,
                status=DeploymentStatus.ready,
                address=embedding_engine,
                upstream_model="base",
            )
        )
    return "embedder"


def test_the_client_gets_the_embeddings_of_texts_and_token_ids(
    openai: OpenAI, embedder: str, embedding_engine: str
) -> None:
    response = httpx2.post(f"{embedding_engine}/v1/embeddings", json={"model": "base", "input": TEXTS})
    expected = [row["embedding"] for row in response.json()["data"]]
    # The client asks for base64 by default.
    found = openai.embeddings.create(model=embedder, input=TEXTS)
    assert [row.embedding for row in found.data] == expected and len(expected[0]) == SIZE
    assert (found.model, found.usage.prompt_tokens, found.usage.total_tokens) == (embedder, 10, 10)
    numbers = openai.embeddings.create(model=embedder, input=TEXTS[0], encoding_format="float", user="me")
    assert numbers.data[0].embedding == pytest.approx(expected[0], abs=1e-6)
    ids = openai.embeddings.create(model=embedder, input=[4, 5, 2])
    both = openai.embeddings.create(model=embedder, input=[[4, 5, 2], [5, 2]], dimensions=16)
    assert (len(ids.data), len(both.data), len(both.data[0].embedding)) == (1, 2, 16)


def test_the_list_of_models_has_the_task(openai: OpenAI, embedder: str, engine: TalkingEngine) -> None:
    tasks = {model.id: model.to_dict()["task"] for model in openai.models.list()}
    assert tasks == {"embedder": "embed", "talk": "generate", "cut-talk": "generate"}
    assert openai.models.retrieve("embedder").to_dict()["max_model_len"] == 48


def test_the_other_task_is_refused_before_the_engine(
    openai: OpenAI, embedder: str, engine: TalkingEngine
) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: openai.chat.completions.create(model=embedder, messages=[]),
        lambda: openai.completions.create(model=embedder, prompt="a"),
        lambda: openai.responses.create(model=embedder, input="a"),
        lambda: openai.embeddings.create(model="talk", input="a"),
    ]
    before = len(engine.bodies)
    for call in calls:
        with pytest.raises(BadRequestError) as refused:
            call()
        assert (refused.value.code, refused.value.param) == ("task_not_served", "model")
    assert len(engine.bodies) == before
    with pytest.raises(NotFoundError):
        openai.embeddings.create(model="none", input="a")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ["a", "rain " * 60]}, "input"),
        ({"input": "a", "dimensions": 17}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "extra_body": {"input_type": "query"}}, "input_type"),
    ],
)
def test_an_invalid_request_is_a_400_with_the_name_of_the_field(
    openai: OpenAI, embedder: str, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.embeddings.create(model=embedder, **fields)
    assert refused.value.param == param


def test_the_tokens_of_embeddings_count_for_the_key(
    openai: OpenAI, embedder: str, client: TestClient, key_of: Callable[..., OpenAI]
) -> None:
    limited = key_of(Scope.inference, tokens_per_day=12)
    headers = limited.embeddings.with_raw_response.create(model=embedder, input=TEXTS).headers
    assert headers["x-ratelimit-limit-tokens"] == "12"
    raw = limited.embeddings.with_raw_response.create(model=embedder, input=TEXTS)
    assert raw.headers["x-ratelimit-remaining-tokens"] == "2"
    with pytest.raises(RateLimitError):
        limited.embeddings.create(model=embedder, input=TEXTS)


def test_an_alias_routes_to_embeddings_and_not_to_both_tasks(
    openai: OpenAI, embedder: str, client: TestClient, engine: TalkingEngine
) -> None:
    url = "/api/v1/aliases/vectors"
    client.put(url, json={"targets": [{"deployment": embedder}]}).raise_for_status()
    assert openai.embeddings.create(model="vectors", input="a").model == "vectors"
    mixed = client.put(
        url, json={"targets": [{"deployment": name, "share": 0.5} for name in (embedder, "talk")]}
    )
    assert (mixed.status_code, mixed.json()["error"]["fields"][0]["field"]) == (422, "targets")


def test_a_batch_of_embeddings_runs_on_the_deployment(
    openai: OpenAI, embedder: str, worker: WorkerContext
) -> None:
    url = "/v1/embeddings"
    lines = [line(str(index), text, embedder, url) for index, text in enumerate([*TEXTS, "rain " * 60])]
    batch = create(openai, lines, url)
    run_next(worker)
    done = openai.batches.retrieve(batch.id)
    assert done.request_counts is not None and done.usage is not None
    assert (done.request_counts.completed, done.request_counts.failed, done.usage.input_tokens) == (2, 1, 10)
    embedding = read(openai, done.output_file_id)["0"]["response"]["body"]["data"][0]["embedding"]
    # The engine may compute it together with the others, or alone.
    alone = openai.embeddings.create(model=embedder, input=TEXTS[0]).data[0].embedding
    assert embedding == pytest.approx(alone, abs=1e-6)
    error = read(openai, done.error_file_id)["2"]["response"]["body"]["error"]
    assert error["code"] == "context_length_exceeded"


def test_a_grader_needs_a_deployment_of_the_right_task(
    openai: OpenAI, embedder: str, engine: TalkingEngine
) -> None:
    cosine = {
        "type": "text_similarity",
        "name": "c",
        "input": "a",
        "reference": "b",
        "evaluation_metric": "cosine",
    }
    judge = {"type": "score_model", "name": "j", "input": [{"role": "user", "content": "Score it."}]}
    graders: list[Any] = [cosine | {"embedding_model": "talk"}, judge | {"model": embedder}]
    for grader, message in zip(graders, ("generates text", "computes embeddings"), strict=True):
        with pytest.raises(BadRequestError, match=message):
            openai.fine_tuning.alpha.graders.validate(grader=grader)
    openai.fine_tuning.alpha.graders.validate(grader=cosine | {"embedding_model": embedder})  # type: ignore[arg-type]


CREATED: dict[str, Any] = {"name": "vectors", "model": "hub/embedder", "task": "embed"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"engine": "mlx"}, "mlx does not compute embeddings"),
    ({"task": "generate", "pooling": "cls"}, "pooling is for an embedding model"),
    ({"engine": "sglang", "pooling": "cls"}, "sglang takes no pooling"),
    ({"options": {"max_adapters": 4}}, "max_adapters has no effect on embeddings"),
    ({"engine": "vllm", "options": {"tool_call_parser": "qwen"}}, "tool_call_parser has no effect"),
    ({"options": {"quantization": "int8"}}, "quantization is not supported"),
    ({"store_days": 1}, "store_days has no effect"),
    ({"task": "classify"}, "'generate' or 'embed'"),
    ({"pooling": "max"}, "'mean', 'cls' or 'last'"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_a_deployment_that_cannot_embed_is_refused(
    client: TestClient, fields: dict[str, Any], message: str
) -> None:
    response = client.post("/api/v1/deployments", json=CREATED | fields)
    assert (response.status_code, message in response.text) == (422, True), response.text


def test_a_folder_is_checked_when_it_is_deployed(client: TestClient, settings: Settings, model: Path) -> None:
    settings.model_roots.append(model.parent.resolve())
    body = CREATED | {"model": str(model)}
    assert client.post("/api/v1/deployments", json=body).json()["task"] == "embed"
    refused = client.post("/api/v1/deployments", json=body | {"pooling": "cls"}).json()["error"]
    assert (refused["code"], "has its own pooling" in refused["message"]) == ("model_unsupported", True)
    generates = client.post("/api/v1/deployments", json=body | {"task": "generate"}).json()["error"]
    assert (generates["code"], generates["hint"]) == ("model_unsupported", "Set `task` to embed.")
    stage = {
        "stage": "deploy",
        "deployment": "vectors",
        "model": str(model),
        "task": "embed",
        "pooling": "cls",
    }
    job = client.post("/api/v1/jobs", json={"name": "vectors", "stages": [stage]})
    assert (job.status_code, "stages.0.model" in job.text) == (422, True)
