"""Downloads: ranges of one version of an object, in parallel, resumed after a broken connection."""

import hashlib
import io
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from app.storage.local_files import CHUNK_BYTES
from app.storage.remote.errors import StoreUnreachable
from app.storage.s3.client import Bucket
from app.storage.s3.errors import error_code, store_errors

RANGE_BYTES = 16 << 20
MAX_RECEIVERS = 6
MAX_BREAKS = 4
FIRST_WAIT_SECONDS = 0.5


def download_file(bucket: Bucket, key: str, destination: Path) -> str:
    """Write an object to a file, and return the SHA-256 of its bytes; raises FileNotFoundError."""
    head = head_object(bucket, key)
    size_bytes, digest = head["ContentLength"], hashlib.sha256()
    starts = range(0, size_bytes, RANGE_BYTES)
    waiting: deque[tuple[int, Future[None]]] = deque()
    with (
        destination.open("w+b") as file,
        ThreadPoolExecutor(max(1, min(MAX_RECEIVERS, len(starts))), thread_name_prefix="s3-download") as pool,
    ):

        def hash_next() -> None:
            # In order, and behind the receivers: what is read here is still in the page cache.
            start, received = waiting.popleft()
            received.result()
            for offset in range(start, min(start + RANGE_BYTES, size_bytes), CHUNK_BYTES):
                end = min(offset + CHUNK_BYTES, start + RANGE_BYTES, size_bytes)
                digest.update(os.pread(file.fileno(), end - offset, offset))

        try:
            for start in starts:
                end = min(start + RANGE_BYTES, size_bytes)
                source = ObjectReader(bucket, key, head, start, end)
                waiting.append((start, pool.submit(_receive, source, file.fileno(), start)))
                if len(waiting) > MAX_RECEIVERS:
                    hash_next()
            while waiting:
                hash_next()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return digest.hexdigest()


def head_object(bucket: Bucket, key: str) -> dict[str, Any]:
    """Return the size and tag of an object; raises FileNotFoundError, or BucketMissing."""
    try:
        with store_errors(bucket.name, key):
            head: dict[str, Any] = bucket.client.head_object(Bucket=bucket.name, Key=key)
    except FileNotFoundError:
        # The response to HEAD has no body, which would say whether the bucket exists.
        check_bucket(bucket)
        raise
    return head


def check_bucket(bucket: Bucket) -> None:
    """Raise BucketMissing if the bucket does not exist."""
    with store_errors(bucket.name):
        bucket.client.list_objects_v2(Bucket=bucket.name, MaxKeys=1)


class ObjectReader(io.RawIOBase):
    """Bytes of one version of an object, from `start` to `end`; a broken connection is opened again."""

    def __init__(
        self, bucket: Bucket, key: str, head: dict[str, Any], start: int = 0, end: int | None = None
    ) -> None:
        self._bucket, self._key, self._etag = bucket, key, head["ETag"]
        self._position, self._end = start, head["ContentLength"] if end is None else end
        self._body: Any = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Continue at another position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._close_body()
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, and return their number; 0 at the end."""
        chunk = self.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, fewer than `size` only at the end."""
        missing = self._end - self._position
        wanted = missing if size < 0 else min(size, missing)
        chunks: list[bytes] = []
        n_breaks = 0
        while wanted > 0:
            try:
                with store_errors(self._bucket.name, self._key):
                    chunk = self._read_some(wanted)
            except StoreUnreachable:
                self._close_body()
                n_breaks += 1
                if n_breaks > MAX_BREAKS:
                    raise
                time.sleep(FIRST_WAIT_SECONDS * 2**n_breaks)
                continue
            chunks.append(chunk)
            self._position += len(chunk)
            wanted -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def close(self) -> None:
        """Close the connection."""
        self._close_body()
        super().close()

    def _read_some(self, size: int) -> bytes:
        if self._body is None:
            self._body = self._open()
        chunk: bytes = self._body.read(size)
        if not chunk:
            raise StoreUnreachable(f"the store ended {self._key} before its last byte")
        return chunk

    def _open(self) -> Any:
        try:
            return self._bucket.client.get_object(
                Bucket=self._bucket.name,
                Key=self._key,
                Range=f"bytes={self._position}-{self._end - 1}",
                IfMatch=self._etag,
            )["Body"]
        except self._bucket.client.exceptions.ClientError as error:
            if error_code(error) in ("PreconditionFailed", "412"):
                raise OSError(f"{self._key} was replaced while it was read") from error
            raise

    def _close_body(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _receive(source: ObjectReader, descriptor: int, offset: int) -> None:
    with source:
        while chunk := source.read(CHUNK_BYTES):
            os.pwrite(descriptor, chunk, offset)
            offset += len(chunk)
