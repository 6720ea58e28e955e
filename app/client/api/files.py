"""Files that travel: uploads with progress, and downloads that continue after an interruption."""

import hashlib
import os
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import httpx2

from app.client.api.connection import API, RETRIED_STATUSES, Connection
from app.client.api.errors import ClientError, DownloadDamaged, ServerUnreachable, ServiceFailure, read_error
from app.client.api.transport import CHUNK_BYTES, Transport

Progress = Callable[[int, int | None], None]
"""Called with the bytes that have travelled, and with those of the whole file if they are known."""
# The service validates every row before it responds.
UPLOAD_TIMEOUT_SECONDS = 3600.0
# Of 64 KiB each: what an asynchronous client reads of a file in one step.
CHUNKS_AT_ONCE = 16


class FileUnreadable(ClientError):
    """A local file cannot be read or written."""


class UploadedForm(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """The body of an upload, which reports how much of its file was read.

    An asynchronous client reads the file in a thread, and gets the reports in its event loop.
    """

    def __init__(
        self, form: Iterable[bytes], file: IO[bytes], progress: Progress | None, transport: Transport
    ) -> None:
        self._form, self._file, self._progress, self._transport = form, file, progress, transport
        self._size = os.fstat(file.fileno()).st_size

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._form:
            yield chunk
            self._report()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = iter(self._form)
        while block := await self._transport.run(_join_next, chunks):
            yield block
            self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._file.tell(), self._size)


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _join_next(chunks: Iterator[bytes]) -> bytes:
    return b"".join(islice(chunks, CHUNKS_AT_ONCE))


async def upload_file(
    connection: Connection,
    path: str,
    file: Path,
    fields: dict[str, str],
    progress: Progress | None,
) -> httpx2.Response:
    """Send a file as the form field `file`; the service recognizes content that it has, so it may repeat."""
    retries, transport = connection.retries(), connection.transport
    while True:
        try:
            with await transport.run(_open, file) as content:
                request = connection.build(
                    "POST",
                    API + path,
                    files={"file": (file.name, content)},
                    data=fields,
                    timeout=UPLOAD_TIMEOUT_SECONDS,
                )
                form: Any = request.stream
                request.stream = UploadedForm(form, content, progress, transport)
                response = await connection.open(request)
            try:
                await transport.read(response)
            finally:
                await transport.release(response)
            return response
        except OSError as error:
            raise FileUnreadable(f"The file {file} cannot be read: {error.strerror}.") from error
        except (ServerUnreachable, ServiceFailure) as error:
            if isinstance(error, ServiceFailure) and error.status not in RETRIED_STATUSES:
                raise
            if (delay := retries.next_delay()) is None:
                raise
            await transport.sleep(delay)


async def download_file(
    connection: Connection,
    path: str,
    target: Path,
    *,
    query: dict[str, str] | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a file of the API to `target`, which appears only when it is complete.

    An interrupted download is continued, also by a later call: its bytes are in `<target>.part`.
    """
    part = target.with_name(target.name + ".part")
    retries, transport = connection.retries(), connection.transport
    try:
        is_complete = await transport.run(_prepare_part, part, sha256)
        etag = None if sha256 is None else f'"{sha256}"'
        while not is_complete:
            n_bytes = _size(part)
            is_complete, etag = await _continue_download(connection, path, part, query, etag, progress)
            if _size(part) > n_bytes:
                retries.reset()
            if not is_complete:
                if (delay := retries.next_delay()) is None:
                    message = f"The download of {target.name} was interrupted after {_size(part):,} bytes."
                    raise ServerUnreachable(message, "Repeat it: it continues where it was.")
                await transport.sleep(delay)
        await transport.run(_publish, part, target, sha256)
    except OSError as error:
        raise FileUnreadable(f"The file {target} cannot be written: {error.strerror}.") from error
    return target


def _prepare_part(part: Path, sha256: str | None) -> bool:
    """Make room for the part of a download; return whether it is complete."""
    part.parent.mkdir(parents=True, exist_ok=True)
    if sha256 is None:
        # Nothing shows whether it is a part of the file as it is now.
        part.unlink(missing_ok=True)
        return False
    return part.exists() and _hash(part) == sha256


def _publish(part: Path, target: Path, sha256: str | None) -> None:
    if sha256 is not None and _hash(part) != sha256:
        part.unlink()
        raise DownloadDamaged(
            f"The downloaded file {target.name} differs from its hash, {sha256}.", "Repeat the download."
        )
    part.replace(target)


async def download_archive(
    connection: Connection, path: str, folder: Path, *, query: dict[str, str], progress: Progress | None
) -> Path:
    """Unpack a tar archive of the API into `folder`, without the folder that it contains."""
    place = folder.resolve()
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise FileUnreadable(f"{folder} exists and is not an empty folder.", "Name another folder.")
    archive = place.with_name(place.name + ".tar")
    await download_file(connection, path, archive, query=query, progress=progress)
    await connection.transport.run(_unpack, archive, place)
    return folder


def _unpack(archive: Path, place: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f"{place.name}.unpacking-") as temporary:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            (inner,) = Path(temporary).iterdir()
            inner.replace(place)
    except (OSError, tarfile.TarError) as error:
        raise FileUnreadable(f"The archive {archive} cannot be unpacked: {error}.") from error
    finally:
        archive.unlink(missing_ok=True)


def resolve_inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder; raises FileUnreadable if its name leads out of it."""
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise FileUnreadable(
            f"The name {name!r} leads out of the folder {folder}.", "Name the path of the file to write."
        )
    return target


def has_content(path: Path, size_bytes: int, sha256: str) -> bool:
    """Return whether a file is already there, byte by byte."""
    return path.is_file() and path.stat().st_size == size_bytes and _hash(path) == sha256


async def _continue_download(
    connection: Connection,
    path: str,
    part: Path,
    query: dict[str, str] | None,
    etag: str | None,
    progress: Progress | None,
) -> tuple[bool, str | None]:
    """Append what is missing; return whether the file is complete, and the tag of its content."""
    transport = connection.transport
    start = _size(part) if etag is not None else 0
    headers = {"Range": f"bytes={start}-", "If-Range": etag} if start and etag is not None else {}
    request = connection.build("GET", API + path, params=query, headers=headers)
    try:
        response = await transport.send(request, stream=True)
    except httpx2.TransportError:
        return False, etag
    try:
        if response.status_code == 416:
            # The part is longer than the file: read all of it again.
            part.unlink(missing_ok=True)
            return False, etag
        if response.status_code in RETRIED_STATUSES:
            return False, etag
        if not response.is_success:
            await transport.read(response)
            raise read_error(response)
        etag = response.headers.get("etag")
        await _write_body(connection, response, part, start if response.status_code == 206 else 0, progress)
    except httpx2.TransportError:
        return False, etag
    finally:
        await transport.release(response)
    return True, etag


async def _write_body(
    connection: Connection, response: httpx2.Response, part: Path, start: int, progress: Progress | None
) -> None:
    length = response.headers.get("content-length")
    total = start + int(length) if length is not None else None
    done, transport = start, connection.transport
    # Unbuffered: closing it writes nothing, and what has arrived is in the file after an interruption.
    with await transport.run(partial(part.open, "r+b" if start else "wb", buffering=0)) as file:
        file.seek(start)
        async with aclosing(transport.chunks(response)) as chunks:
            async for chunk in chunks:
                await transport.run(_write_all, file, chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        file.truncate()
        await transport.run(os.fsync, file.fileno())


def _write_all(file: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
