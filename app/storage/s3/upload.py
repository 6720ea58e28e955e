"""Uploads of files: in parts, resumed after a kill, never in place of another object, verified by hash.

A second upload of the same file to the same key, also by another process, finds the parts of the first by
listing them, and sends those that are absent or differ. The file is read once.
"""

import base64
import hashlib
import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from app.storage.remote.errors import ArtifactExists, StoreUnreachable
from app.storage.s3.client import Bucket
from app.storage.s3.errors import error_code, store_errors

MIB = 1 << 20
PART_BYTES = 8 * MIB
# The largest number of parts that S3 accepts.
MAX_PARTS = 10_000
# Parts in memory at once: one that is read, and those that are sent.
MAX_BUFFERED_BYTES = 48 * MIB
MAX_SENDERS = 5
EXISTS_CODES = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
# A repeated completion, of which the first response was lost.
COMPLETED_CODES = {*EXISTS_CODES, "NoSuchUpload"}
UNSUPPORTED_CODES = {"NotImplemented", "501"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilePart:
    """A part of a file, with its number from 1 on."""

    number: int
    content: bytes

    @property
    def etag(self) -> str:
        """The tag that S3 gives the part, unless it is encrypted with a key of KMS."""
        return f'"{hashlib.md5(self.content, usedforsecurity=False).hexdigest()}"'


@dataclass
class FileDigest:
    """The SHA-256 of a file, and the one that S3 computes from those of its parts."""

    whole: Any = field(default_factory=hashlib.sha256)
    of_parts: list[bytes] = field(default_factory=list)

    def add(self, content: bytes) -> str:
        """Add the next part, and return its SHA-256 in base64."""
        self.whole.update(content)
        self.of_parts.append(hashlib.sha256(content).digest())
        return base64.b64encode(self.of_parts[-1]).decode()

    def composite(self) -> str:
        """Return the checksum of an object that consists of these parts."""
        return base64.b64encode(hashlib.sha256(b"".join(self.of_parts)).digest()).decode()


def part_bytes(size_bytes: int) -> int:
    """Return the size of the parts of a file: a function of its size, so that a later upload has the same."""
    least = -(-size_bytes // MAX_PARTS)
    return max(PART_BYTES, -(-least // MIB) * MIB)


class FileUpload:
    """The upload of one file to one key."""

    def __init__(self, bucket: Bucket, key: str, source: Path, *, replace: bool) -> None:
        self._bucket, self._key, self._source, self._replace = bucket, key, source, replace
        self._client = bucket.client
        self._at = {"Bucket": bucket.name, "Key": key}
        self._size_bytes = source.stat().st_size
        self._part_bytes = part_bytes(self._size_bytes)
        self.digest = FileDigest()

    def run(self) -> str:
        """Upload the file unless it is stored already, and return its SHA-256; raises ArtifactExists."""
        with self._source.open("rb") as file, store_errors(self._bucket.name, self._key):
            if not self._replace and (existing := self._head()) is not None:
                self._compare(existing, file)
            elif self._size_bytes <= self._part_bytes:
                self._put(file.read())
            else:
                self._send_parts(file)
        return self.digest.whole.hexdigest()  # type: ignore[no-any-return]

    def _put(self, content: bytes) -> None:
        checksum = self.digest.add(content)
        try:
            self._call(
                self._client.put_object, Body=content, ChecksumSHA256=checksum, **self._bucket.encryption
            )
        except self._client.exceptions.ClientError as error:
            if error_code(error) not in EXISTS_CODES:
                raise
            self._verify_stored()

    def _send_parts(self, file: BinaryIO) -> None:
        upload_id, present = self._find_upload()
        completed: list[dict[str, Any]] = []
        waiting: deque[Future[dict[str, Any]]] = deque()
        n_senders = max(1, min(MAX_SENDERS, MAX_BUFFERED_BYTES // self._part_bytes - 1))
        with ThreadPoolExecutor(n_senders, thread_name_prefix="s3-upload") as executor:
            try:
                for part in self._read_parts(file):
                    checksum = self.digest.add(part.content)
                    if (stored := _matching(present.get(part.number), part, checksum)) is not None:
                        completed.append(stored)
                        continue
                    waiting.append(executor.submit(self._send_part, upload_id, part, checksum))
                    del part
                    if len(waiting) >= n_senders:
                        completed.append(waiting.popleft().result())
                completed += [future.result() for future in waiting]
            except BaseException:
                # The parts that were sent stay: the next upload continues with them.
                executor.shutdown(cancel_futures=True)
                raise
        if len(completed) != -(-self._size_bytes // self._part_bytes):
            raise StoreUnreachable(f"{self._source.name} changed while it was uploaded")
        self._complete(upload_id, sorted(completed, key=lambda sent: sent["PartNumber"]))

    def _read_parts(self, file: BinaryIO) -> Iterator[FilePart]:
        number = 0
        while content := file.read(self._part_bytes):
            number += 1
            yield FilePart(number, content)

    def _send_part(self, upload_id: str, part: FilePart, checksum: str) -> dict[str, Any]:
        sent = self._client.upload_part(
            **self._at,
            UploadId=upload_id,
            PartNumber=part.number,
            Body=part.content,
            ChecksumSHA256=checksum,
        )
        return {"PartNumber": part.number, "ETag": sent["ETag"], "ChecksumSHA256": checksum}

    def _find_upload(self) -> tuple[str, dict[int, dict[str, Any]]]:
        """Return the open upload to this key with its parts, or a new one without any."""
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=self._bucket.name, Prefix=self._key
        )
        for page in pages:
            for upload in page.get("Uploads", []):
                if upload["Key"] == self._key:
                    parts = list_parts(self._bucket, self._key, upload["UploadId"])
                    return upload["UploadId"], {part["PartNumber"]: part for part in parts}
        created = self._client.create_multipart_upload(
            **self._at, ChecksumAlgorithm="SHA256", **self._bucket.encryption
        )
        return created["UploadId"], {}

    def _complete(self, upload_id: str, parts: list[dict[str, Any]]) -> None:
        try:
            completed = self._call(
                self._client.complete_multipart_upload,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
            )
        except self._client.exceptions.ClientError as error:
            if error_code(error) not in COMPLETED_CODES:
                raise
            if error_code(error) != "NoSuchUpload":
                self._client.abort_multipart_upload(**self._at, UploadId=upload_id)
            self._verify_stored()
            return
        checksum = completed.get("ChecksumSHA256")
        if checksum is not None and checksum.partition("-")[0] != self.digest.composite():
            self._client.delete_object(**self._at)
            raise StoreUnreachable(f"the store has other bytes under {self._key} than were sent")

    def _call(self, method: Any, **parameters: Any) -> Any:
        """Create the object, and let the store refuse that if the key has one."""
        if self._replace:
            return method(**self._at, **parameters)
        try:
            return method(**self._at, **parameters, IfNoneMatch="*")
        except self._client.exceptions.ClientError as error:
            if error_code(error) not in UNSUPPORTED_CODES:
                raise
            # The key had no object a moment ago: keys are random, and no other writer has this one.
            logger.warning("the store does not support If-None-Match; %s was checked before", self._key)
            return method(**self._at, **parameters)

    def _head(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._client.head_object(**self._at, ChecksumMode="ENABLED")
        except self._client.exceptions.ClientError as error:
            if error_code(error) == "404":
                return None
            raise
        return found

    def _compare(self, existing: dict[str, Any], file: BinaryIO) -> None:
        """Check that the object under the key is this file; raises ArtifactExists."""
        for part in self._read_parts(file):
            self.digest.add(part.content)
        self._check(existing)

    def _verify_stored(self) -> None:
        """Check that the object under the key is the file that was read; raises ArtifactExists."""
        existing = self._head()
        if existing is None:
            raise StoreUnreachable(f"the upload to {self._key} was aborted")
        self._check(existing)

    def _check(self, existing: dict[str, Any]) -> None:
        if existing["ContentLength"] != self._size_bytes:
            raise ArtifactExists(self._key)
        checksum = existing.get("ChecksumSHA256", "").partition("-")[0]
        whole = base64.b64encode(self.digest.whole.digest()).decode()
        if checksum in (self.digest.composite(), whole):
            return
        # Written by another program, or by a store that returns no checksum.
        stored = hashlib.sha256()
        for chunk in self._client.get_object(**self._at)["Body"].iter_chunks(MIB):
            stored.update(chunk)
        if stored.digest() != self.digest.whole.digest():
            raise ArtifactExists(self._key)


def list_parts(bucket: Bucket, key: str, upload_id: str) -> Iterator[dict[str, Any]]:
    """Yield the parts of an open upload."""
    pages = bucket.client.get_paginator("list_parts").paginate(
        Bucket=bucket.name, Key=key, UploadId=upload_id
    )
    for page in pages:
        yield from page.get("Parts", [])


def _matching(stored: dict[str, Any] | None, part: FilePart, checksum: str) -> dict[str, Any] | None:
    """Return the stored part for the completion if it has this content."""
    if stored is None or stored["Size"] != len(part.content):
        return None
    # The tag is not the MD5 of a part that is encrypted with a key of KMS.
    same = stored["ChecksumSHA256"] == checksum if "ChecksumSHA256" in stored else stored["ETag"] == part.etag
    return {"PartNumber": part.number, "ETag": stored["ETag"], "ChecksumSHA256": checksum} if same else None
