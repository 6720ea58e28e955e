"""OpenAI's Uploads API, through its official client."""

import hashlib
import io
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError, InternalServerError, NotFoundError, OpenAI
from sqlalchemy import select, update
from sqlmodel import col

from app.files import service as files
from app.retention import files as retention
from app.retention.files import delete_expired_files, delete_upload_parts
from app.storage.database import read_session, transaction
from app.storage.opening import get_store
from app.tables import File, Upload, UploadPart
from app.tables.base import utc_now
from app.uploads import service as uploads

CONTENT = bytes(range(256)) * 400


def begin(openai: OpenAI, **fields: Any) -> Any:
    given: dict[str, Any] = {
        "bytes": len(CONTENT),
        "filename": "a.bin",
        "mime_type": "application/jsonl",
        "purpose": "user_data",
    }
    return openai.uploads.create(**given | fields)


def test_a_file_in_chunks_is_joined_in_its_order(openai: OpenAI) -> None:
    upload = openai.uploads.upload_file_chunked(
        file=io.BytesIO(CONTENT).getvalue(),
        filename="a.bin",
        bytes=len(CONTENT),
        mime_type="application/jsonl",
        purpose="user_data",
        part_size=10_000,
        md5=hashlib.md5(CONTENT).hexdigest(),
    )
    assert (upload.status, upload.object, upload.bytes) == ("completed", "upload", len(CONTENT))
    assert upload.file is not None
    assert openai.files.retrieve(upload.file.id) == upload.file
    assert openai.files.content(upload.file.id).read() == CONTENT


def test_the_order_is_that_of_the_completion_which_may_be_repeated(openai: OpenAI) -> None:
    upload = begin(openai, bytes=4)
    first, second = (openai.uploads.parts.create(upload.id, data=data) for data in (b"cd", b"ab"))
    completed = openai.uploads.complete(upload.id, part_ids=[second.id, first.id])
    assert completed.file is not None
    assert openai.files.content(completed.file.id).read() == b"abcd"
    assert openai.uploads.complete(upload.id, part_ids=[second.id, first.id]) == completed
    assert len(list(openai.files.list())) == 1


def test_a_cancelled_upload_takes_no_part_and_leaves_none(openai: OpenAI) -> None:
    upload = begin(openai)
    openai.uploads.parts.create(upload.id, data=b"ab")
    assert openai.uploads.cancel(upload.id).status == "cancelled" == openai.uploads.cancel(upload.id).status
    with pytest.raises(BadRequestError) as caught:
        openai.uploads.parts.create(upload.id, data=b"cd")
    assert caught.value.code == "upload_not_pending"
    assert len(list(delete_upload_parts(lambda: None, dry_run=False))) == 1
    with read_session() as session:
        assert session.scalars(select(UploadPart)).all() == []


def test_a_completion_that_stops_halfway_leaves_no_file(
    openai: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(openai, bytes=2)
    part = openai.uploads.parts.create(upload.id, data=b"ab")
    with monkeypatch.context() as patched:
        patched.setattr(uploads, "_end", lambda *arguments: 1 / 0)
        with pytest.raises(InternalServerError):
            openai.uploads.complete(upload.id, part_ids=[part.id])
    assert openai.files.list().data == []
    completed = openai.uploads.complete(upload.id, part_ids=[part.id])
    assert openai.files.list().data == [completed.file]


def test_a_completion_during_which_the_upload_is_cancelled_adds_no_file(
    openai: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(openai, bytes=2)
    part = openai.uploads.parts.create(upload.id, data=b"ab")
    publish = files.publish_content

    def publish_and_cancel(path: Path) -> tuple[str, str]:
        openai.uploads.cancel(upload.id)
        return publish(path)

    monkeypatch.setattr(files, "publish_content", publish_and_cancel)
    with pytest.raises(BadRequestError, match="cancelled"):
        openai.uploads.complete(upload.id, part_ids=[part.id])
    assert openai.files.list().data == []


def test_an_upload_takes_so_many_parts_only(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_STORED_PARTS", 2)
    upload = begin(openai)
    for _ in range(2):
        openai.uploads.parts.create(upload.id, data=b"")
    with pytest.raises(BadRequestError, match="2 parts") as caught:
        openai.uploads.parts.create(upload.id, data=b"")
    assert caught.value.param == "data"


def test_a_collection_deletes_all_parts_and_old_uploads(
    openai: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    upload = begin(openai)
    parts = {openai.uploads.parts.create(upload.id, data=b"a").id for _ in range(5)}
    openai.uploads.cancel(upload.id)
    assert {removal.name for removal in delete_upload_parts(lambda: None, dry_run=True)} == parts
    assert {removal.name for removal in delete_upload_parts(lambda: None, dry_run=False)} == parts
    assert list(retention.delete_old_uploads(dry_run=False)) == []
    with transaction() as session:
        session.execute(update(Upload).values(expires_at=utc_now() - timedelta(days=31)))
    assert [removal.name for removal in retention.delete_old_uploads(dry_run=False)] == [upload.id]
    with pytest.raises(NotFoundError):
        openai.uploads.cancel(upload.id)


def test_a_collection_deletes_all_expired_files(openai: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for _ in range(5):
        openai.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    with transaction() as session:
        session.execute(update(File).values(expires_at=utc_now() - timedelta(seconds=1)))
    assert len(list(delete_expired_files(lambda: None, dry_run=False))) == 5


def test_an_upload_expires(openai: OpenAI) -> None:
    upload = begin(openai, bytes=2)
    part = openai.uploads.parts.create(upload.id, data=b"ab")
    with transaction() as session:
        session.execute(update(Upload).values(expires_at=utc_now() - timedelta(seconds=1)))
    with pytest.raises(BadRequestError, match="expired"):
        openai.uploads.complete(upload.id, part_ids=[part.id])


def test_an_expired_file_is_gone_at_once_and_collected_later(openai: OpenAI) -> None:
    file = openai.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    with read_session() as session:
        artifact = session.get_one(File, file.id).artifact
    with transaction() as session:
        session.execute(update(File).values(expires_at=utc_now() - timedelta(seconds=1)))
    with pytest.raises(NotFoundError):
        openai.files.retrieve(file.id)
    assert [removal.name for removal in delete_expired_files(lambda: None, dry_run=False)] == [file.id]
    with read_session() as session:
        assert session.scalars(select(col(File.id))).all() == []
    assert artifact is not None and get_store().exists(artifact), "garbage is deleted after its grace period"


Call = Callable[[OpenAI], Any]
REFUSALS: list[tuple[Call, type[APIStatusError], str | None, str]] = [
    (lambda o: begin(o, bytes=0), BadRequestError, "bytes", "invalid"),
    (lambda o: begin(o, bytes=2**50), APIStatusError, "bytes", "too_large"),
    (lambda o: begin(o, purpose="bananas"), BadRequestError, "purpose", "invalid"),
    (lambda o: begin(o, extra_body={"colour": 1}), BadRequestError, "colour", "unknown_parameter"),
    (lambda o: o.uploads.cancel("upload_none"), NotFoundError, None, "upload_not_found"),
    (lambda o: o.uploads.parts.create("upload_none", data=b"a"), NotFoundError, None, "upload_not_found"),
    (lambda o: o.uploads.complete(begin(o).id, part_ids=["p"]), BadRequestError, "part_ids.0", "invalid"),
    (lambda o: o.uploads.complete(begin(o).id, part_ids=[]), BadRequestError, "part_ids", "invalid"),
    (lambda o: complete_one(o, bytes=3), BadRequestError, "part_ids", "invalid"),
    (lambda o: complete_one(o, bytes=2, md5="0" * 32), BadRequestError, "md5", "invalid"),
]


def complete_one(openai: OpenAI, bytes: int, **fields: Any) -> Any:
    upload = begin(openai, bytes=bytes)
    part = openai.uploads.parts.create(upload.id, data=b"ab")
    return openai.uploads.complete(upload.id, part_ids=[part.id], **fields)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_each_error_names_its_parameter(openai: OpenAI) -> None:
    for call, kind, param, code in REFUSALS:
        with pytest.raises(kind) as caught:
            call(openai)
        assert (caught.value.param, caught.value.code) == (param, code)
