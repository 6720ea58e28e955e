"""A request that a client repeats creates nothing twice, and equal requests of several clients each create.

OpenAI's clients repeat a POST after a lost response without an idempotency key; they count repetitions in the
header `x-stainless-retry-count`. A lost response is one that no client was connected to receive.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from sqlalchemy import func, update
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.idempotency import service
from app.idempotency.service import CreationRequest, CreationSuperseded
from app.storage.database import database_now, read_session, transaction
from app.tables import CreationRecord, FineTuningJob
from tests.contract.openai_api.test_fine_tuning import MODEL, upload

RETRY = {"x-stainless-retry-count": "1"}


@pytest.fixture(autouse=True)
def _map_openai_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_OPENAI_MODELS", json.dumps({MODEL: "org/tiny"}))


def create(openai: OpenAI, file: str, headers: dict[str, str] | None = None, **fields: Any) -> str:
    job = openai.fine_tuning.jobs.create(model=MODEL, training_file=file, extra_headers=headers, **fields)
    return job.id


def lose_responses() -> None:
    """Make the creations those of a process that was killed before it sent a response."""
    with transaction() as session:
        session.execute(update(CreationRecord).values(delivered_at=None, held_until=database_now(-1)))


def count_jobs() -> int:
    with read_session() as session:
        return session.scalar(select(func.count()).select_from(FineTuningJob)) or 0


def test_a_repetition_gets_the_job_whose_response_was_lost(openai: OpenAI) -> None:
    file = upload(openai)
    first = create(openai, file)
    lose_responses()
    assert create(openai, file, RETRY, suffix="other") != first
    assert create(openai, file, RETRY) == first
    # Its response has arrived now: this repeats a request that created nothing.
    assert create(openai, file, RETRY) != first
    assert count_jobs() == 3


def test_equal_first_requests_each_create(openai: OpenAI) -> None:
    file = upload(openai)
    assert create(openai, file) != create(openai, file)


def test_equal_requests_whose_responses_were_lost_are_repeated_once_each(
    openai: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A response that takes longer than the hold would be repeated to another client.
    monkeypatch.setattr(service, "HOLD_SECONDS", 60.0)
    file = upload(openai)
    created = {create(openai, file) for _ in range(3)}
    lose_responses()
    with ThreadPoolExecutor(5) as pool:
        repeated = list(pool.map(lambda _: create(openai, file, RETRY), range(5)))
    assert created < set(repeated)
    assert (len(set(repeated)), count_jobs()) == (5, 5)


def test_an_idempotency_key_creates_once_and_is_refused_with_another_body(
    openai: OpenAI, client: TestClient
) -> None:
    file, key = upload(openai), {"Idempotency-Key": "k"}
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: create(openai, file, key), range(4)))
    assert (len(ids), count_jobs()) == (1, 1)
    with pytest.raises(BadRequestError) as caught:
        create(openai, file, key, suffix="other")
    assert caught.value.code == "idempotency_key_reused"
    assert create(openai, file, {"Idempotency-Key": "k2"}) not in ids


def test_a_file_is_created_once_for_a_key_although_its_form_is_encoded_anew(openai: OpenAI) -> None:
    def send(text: str, headers: dict[str, str] | None = None, purpose: Any = "user_data") -> str:
        file = ("a.txt", text.encode())
        return openai.files.create(file=file, purpose=purpose, extra_headers=headers).id

    key = {"Idempotency-Key": "k"}
    first = send("text", key)
    assert send("text", key) == first
    for text, purpose in (("other", "user_data"), ("text", "batch")):
        with pytest.raises(BadRequestError) as caught:
            send(text, key, purpose)
        assert caught.value.code == "idempotency_key_reused"
    lost = send("text")
    lose_responses()
    assert lost != first
    assert send("text", RETRY) == lost
    assert send("other", RETRY) not in (first, lost)


def test_a_part_of_an_upload_is_stored_once_for_a_key(openai: OpenAI) -> None:
    upload = openai.uploads.create(bytes=4, filename="a", mime_type="text/plain", purpose="user_data").id
    key = {"Idempotency-Key": "k"}
    ids = {openai.uploads.parts.create(upload, data=b"text", extra_headers=key).id for _ in range(2)}
    assert len(ids) == 1
    lost = openai.uploads.parts.create(upload, data=b"text").id
    lose_responses()
    assert openai.uploads.parts.create(upload, data=b"text", extra_headers=RETRY).id == lost
    assert openai.uploads.complete(upload, part_ids=list(ids)).status == "completed"


def test_a_request_that_was_repeated_while_it_worked_creates_nothing(openai: OpenAI) -> None:
    slow = request()
    create_record(request(retry_count=1))
    with pytest.raises(CreationSuperseded):
        create_record(slow)
    with read_session() as session:
        assert len(session.scalars(select(CreationRecord)).all()) == 1


def test_a_repetition_takes_what_the_slow_request_created_meanwhile(openai: OpenAI) -> None:
    repetition = request(retry_count=1)
    service.check_repetition(repetition)
    create_record(request())
    with pytest.raises(service.EarlierCreation):
        create_record(repetition)


def test_records_are_removed_after_a_day(openai: OpenAI) -> None:
    file = upload(openai)
    create(openai, file, {"Idempotency-Key": "k"})
    with transaction() as session:
        session.execute(update(CreationRecord).values(created_at=database_now(-86_401)))
    create(openai, file, {"Idempotency-Key": "k"})
    with read_session() as session:
        assert session.scalars(select(col(CreationRecord.idempotency_key))).all() == ["k"]


def request(**values: Any) -> CreationRequest:
    defaults: dict[str, Any] = {
        "caller": "",
        "route": "POST /v1/x",
        "body_sha256": "0",
        "idempotency_key": None,
    }
    started_at = service.read_clock()
    # What follows is later: SQLite's clock has milliseconds.
    while service.read_clock() == started_at:
        time.sleep(0.001)
    return CreationRequest(**(defaults | {"retry_count": 0, "started_at": started_at} | values))


def create_record(request: CreationRequest) -> None:
    with transaction() as session:
        service.record_creation(session, request, "x")
