"""OpenAI's client for Python: files, training and what is around them, in all its versions."""

import contextlib
import hashlib
import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer
from os import environ
from typing import Any

import openai
from cases import BASE_URL, GREET, GREETING, MODEL, expect, run
from openai import OpenAI

TRAINING_KEY, LOSING_URL = environ["TRAINING_API_KEY"], environ["LOSING_URL"]
BASE = "gpt-4o-mini-2024-07-18"
RUN_SECONDS = 240
ROWS = [
    {"messages": [{"role": "user", "content": GREET}, {"role": "assistant", "content": f"Hello {number}"}]}
    for number in range(10)
]
GRADER: Any = {
    "type": "string_check",
    "name": "exact",
    "operation": "eq",
    "input": "{{ item.said }}",
    "reference": "{{ item.meant }}",
}
# The end of a text in the model's vocabulary: without it, a completion is as long as it may be.
END_TOKEN = "2"

client = OpenAI(base_url=BASE_URL, api_key=TRAINING_KEY)


def files() -> None:
    file = upload(ROWS, "fine-tune")
    expect(client.files.wait_for_processing(file, poll_interval=0.2).status, "processed")
    expect(len(client.files.content(file).text.splitlines()), len(ROWS))
    assert file in [one.id for one in client.files.list(purpose="fine-tune")]
    faulty = client.files.create(file=("rows.jsonl", b'{"messages": []}\n'), purpose="fine-tune")
    expect(client.files.retrieve(faulty.id).status, "error")
    expect(client.files.delete(faulty.id).deleted, True)


def uploads() -> None:
    content = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()
    begun = client.uploads.create(
        bytes=len(content), filename="rows.jsonl", mime_type="application/jsonl", purpose="fine-tune"
    )
    halves = content[:500], content[500:]
    # In the reverse order: the completion states the order.
    parts = [client.uploads.parts.create(begun.id, data=half).id for half in reversed(halves)]
    done = client.uploads.complete(
        begun.id, part_ids=[*reversed(parts)], md5=hashlib.md5(content).hexdigest()
    )
    assert done.file is not None
    expect((done.status, client.files.content(done.file.id).content), ("completed", content))


def fine_tuning() -> None:
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 2}}}
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=upload(ROWS, "fine-tune"), method=method, suffix="matrix", seed=1
    )
    assert job.id in [one.id for one in client.fine_tuning.jobs.list()]
    done = wait_for(lambda: client.fine_tuning.jobs.retrieve(job.id), "succeeded", "failed", "cancelled")
    expect((done.status, done.error and done.error.message), ("succeeded", None))
    assert done.trained_tokens
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert any("Created fine-tuning job" in message for message in messages), messages
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert client.files.content(done.result_files[0]).read()
    for name in (done.fine_tuned_model, checkpoints[0].fine_tuned_model_checkpoint):
        chat(client.with_options(max_retries=20), model=name, max_tokens=4)


def batches() -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": GREET}], "temperature": 0}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = upload([line, {**line, "custom_id": "b"}], "batch")
    batch = client.batches.create(
        input_file_id=file,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"of": "matrix"},
    )
    done = wait_for(lambda: client.batches.retrieve(batch.id), "completed", "failed", "expired", "cancelled")
    assert done.request_counts is not None and done.output_file_id is not None, done
    expect((done.status, done.request_counts.completed), ("completed", 2))
    rows = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
    texts = {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in rows}
    expect(texts, {"a": GREETING, "b": GREETING})
    assert batch.id in [one.id for one in client.batches.list()]


def evals() -> None:
    schema = {"type": "object", "properties": {"said": {"type": "string"}, "meant": {"type": "string"}}}
    config: Any = {"type": "custom", "item_schema": schema}
    defined = client.evals.create(name="matrix", data_source_config=config, testing_criteria=[GRADER])
    items = [{"item": {"said": "a", "meant": "a"}}, {"item": {"said": "a", "meant": "b"}}]
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": items}}
    run = client.evals.runs.create(defined.id, name="run", data_source=source)
    done = wait_for(
        lambda: client.evals.runs.retrieve(run.id, eval_id=defined.id), "completed", "failed", "canceled"
    )
    expect((done.status, done.result_counts.passed, done.result_counts.failed), ("completed", 1, 1))
    statuses = [item.status for item in client.evals.runs.output_items.list(run.id, eval_id=defined.id)]
    expect(sorted(statuses), ["fail", "pass"])
    assert defined.id in [one.id for one in client.evals.list()]
    expect(client.evals.delete(defined.id).deleted, True)


def models() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    expect(client.models.retrieve(MODEL).id, MODEL)


def errors() -> None:
    once = client.with_options(max_retries=0)
    inference = once.with_options(api_key=environ["INFERENCE_API_KEY"])
    slow = once.with_options(api_key=environ["SLOW_API_KEY"])
    refuse(openai.NotFoundError, lambda: once.files.retrieve("file-none"), "file_not_found")
    refuse(openai.NotFoundError, lambda: chat(once, model="none"), "model_not_found")
    refuse(openai.BadRequestError, lambda: chat(once, extra_body={"bananas": 1}), "invalid_request")
    file = "file-none"
    refuse(openai.BadRequestError, lambda: once.fine_tuning.jobs.create(model=BASE, training_file=file))
    refuse(openai.AuthenticationError, lambda: chat(once.with_options(api_key="none")), "invalid_api_key")
    refuse(openai.AuthenticationError, lambda: once.with_options(api_key="none").files.list())
    refuse(openai.PermissionDeniedError, inference.files.list)
    refuse(openai.InternalServerError, lambda: chat(once, model="unavailable"))
    with contextlib.suppress(openai.RateLimitError):  # Another program may have used the minute.
        chat(slow)
    refuse(openai.RateLimitError, lambda: chat(slow))


def pages() -> None:
    ids = [upload([{"number": number, "of": str(uuid.uuid4())}], "user_data") for number in range(5)]
    found = [file.id for file in client.files.list(purpose="user_data", limit=2, order="asc")]
    expect(found[-5:], ids)
    assert len(found) == len(set(found))


def webhooks() -> None:
    received: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    body = {
        "name": "matrix",
        "url": f"http://127.0.0.1:{server.server_port}/",
        "event_types": ["fine_tuning.job.cancelled"],
    }
    # Older clients have no method for it.
    endpoint: Any = client.post("/webhook_endpoints", cast_to=object, body=body)
    job = client.fine_tuning.jobs.create(model=BASE, training_file=upload(ROWS, "fine-tune"))
    client.fine_tuning.jobs.cancel(job.id)
    deadline = time.monotonic() + RUN_SECONDS
    while not received and time.monotonic() < deadline:
        time.sleep(0.2)
    (headers, payload), *_ = received
    event = client.webhooks.unwrap(payload, headers, secret=endpoint["signing_secret"])
    expect((event.type, event.data.id), ("fine_tuning.job.cancelled", job.id))
    client.delete(f"/webhook_endpoints/{endpoint['id']}", cast_to=object)


def abort() -> None:
    # The key allows one request at a time.
    single = client.with_options(api_key=environ["SINGLE_API_KEY"], max_retries=0)
    stream = single.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": GREET}],
        max_tokens=900,
        logit_bias={END_TOKEN: -100},
        stream=True,
    )
    next(iter(stream))
    refuse(openai.RateLimitError, lambda: chat(single, max_tokens=1))
    stream.close()
    began = time.monotonic()
    chat(client.with_options(api_key=environ["SINGLE_API_KEY"], max_retries=3), max_tokens=1)
    assert time.monotonic() - began < 5


def retries() -> None:
    # Our proxy sends the request on, and closes the connection before the response.
    lossy = OpenAI(base_url=LOSING_URL, api_key=TRAINING_KEY, max_retries=2)
    mark = str(uuid.uuid4())
    file = upload(ROWS, "fine-tune")
    response = lossy.fine_tuning.jobs.with_raw_response.create(
        model=BASE, training_file=file, metadata={"mark": mark}, extra_headers={"x-lose-response": mark}
    )
    expect(response.retries_taken, 1)
    job = response.parse()
    created = [one.id for one in client.fine_tuning.jobs.list() if (one.metadata or {}).get("mark") == mark]
    client.fine_tuning.jobs.cancel(job.id)
    expect(created, [job.id])


def upload(rows: list[Any], purpose: Any) -> str:
    content = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    return client.files.create(file=("rows.jsonl", content), purpose=purpose).id


def chat(caller: OpenAI, **options: Any) -> Any:
    defaults: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": GREET}]}
    return caller.chat.completions.create(**{**defaults, **options})


def wait_for(read: Any, *statuses: str) -> Any:
    """Return what is read once it has one of these statuses."""
    deadline = time.monotonic() + RUN_SECONDS
    while (found := read()).status not in statuses:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found


def refuse(kind: type[openai.APIStatusError], request: Any, code: str | None = None) -> None:
    """Expect the client's exception of this class, with the code of the service."""
    try:
        request()
    except openai.APIStatusError as error:
        expect(type(error), kind)
        assert error.request_id
        if code is not None:
            expect(error.code, code)
        return
    raise AssertionError(f"no {kind.__name__}")


run(files, uploads, fine_tuning, batches, evals, models, errors, pages, webhooks, abort, retries)
