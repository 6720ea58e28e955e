"""Building of an entry: in this process if the file is small, else in several processes of a program.

A large file is left to a program of its own: the memory that it needs is returned at its end, and its
processes are forked from one that has loaded no ML package and has one thread.
"""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
from tokenizers import Tokenizer

from trainers.data.files.file_checks import find_file_fault
from trainers.data.files.json_line import RowParser
from trainers.data.files.jsonl import READ_BUFFER_BYTES, iter_lines
from trainers.rendering.cache.batches import Line, LineRenderer, RenderedBatch
from trainers.rendering.cache.columns import SCHEMAS
from trainers.rendering.cache.folder import META, MIXTURE
from trainers.rendering.cache.spec import RenderSpec
from trainers.rendering.cache.tokenize import BatchRenderer
from trainers.rendering.omissions.counts import OmissionCounts
from trainers.rendering.render import require_file, unreadable
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import DatasetInvalid, ProgramError
from trainers.runtime.process_tree import MARKER, die_with_parent, new_marker

ROWS = "rows.arrow"
SPEC = "spec.json"
TOKENIZER = "tokenizer.json"
# Below this size the start of a program takes longer than the rendering.
MIN_PROGRAM_BYTES = 2**20
MAX_PROCESSES = 32
BATCH_LINES = 512
BATCH_BYTES = 2**20

Failure = tuple[ErrorCode, str, str | None]
"""Code, message and hint of an error: the constructors of errors differ, so they cannot be pickled."""


class BuildFailed(ProgramError):
    """An error of the program, with its code."""

    def __init__(self, code: ErrorCode, message: str, hint: str | None) -> None:
        super().__init__(message, hint)
        self.code = code


def build_here(spec: RenderSpec, renderer: LineRenderer, folder: Path) -> None:
    """Fill the folder of an entry; raises the ProgramError of the first invalid row."""
    _write(spec, (renderer.render(batch) for batch in _read_batches(spec)), folder)


def build_in_program(
    spec: RenderSpec, tokenizer: Tokenizer, folder: Path, confirm: Callable[[], bool]
) -> bool:
    """Fill the folder of an entry by a program that uses all cores; raises as `build_here`.

    Return False, and leave the folder empty, if `confirm`, which is called meanwhile, returns False.
    """
    files.write_json(folder / SPEC, spec.model_dump(mode="json"))
    tokenizer.save(str(folder / TOKENIZER), pretty=False)
    # With a marker, its processes end with it.
    environment = {MARKER: new_marker()} | os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "trainers.rendering.cache.program", str(folder)]
    program = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    with program:
        try:
            is_confirmed = confirm()
            output = program.communicate()[0] if is_confirmed else b""
        finally:
            program.kill()
    for path in folder.iterdir() if not is_confirmed else (folder / SPEC, folder / TOKENIZER):
        path.unlink(missing_ok=True)
    if is_confirmed and program.returncode != 0:
        raise _failure(spec, program.returncode, output)
    return is_confirmed


def _failure(spec: RenderSpec, status: int, output: bytes) -> ProgramError:
    """Return the error that the program has written, or one for its status."""
    if output:
        error = json.loads(output)
        is_of_data = error["code"] == ErrorCode.dataset_invalid
        return (
            DatasetInvalid(error["message"], error["hint"])
            if is_of_data
            else BuildFailed(ErrorCode(error["code"]), error["message"], error["hint"])
        )
    return ProgramError(
        f"The program that renders {spec.dataset} ended with status {status}.",
        "The log shows why. A negative status is the signal that ended it: 9 often is a lack of memory.",
    )


def build_in_processes(folder: Path) -> None:
    """Fill the folder of an entry from the spec in it; raises as `build_here`."""
    spec = RenderSpec.model_validate_json((folder / SPEC).read_text())
    count = min(MAX_PROCESSES, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    pa.array([])  # Imports pandas, if it is installed, once for all processes.
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    with ProcessPoolExecutor(count, get_context("fork"), _start_worker, (spec, tokenizer)) as pool:
        _write(spec, _map_in_order(pool, _read_batches(spec), 4 * count), folder)


def _start_worker(spec: RenderSpec, tokenizer: Tokenizer) -> None:
    global _worker
    die_with_parent()
    _worker = LineRenderer(spec.kind, spec.dataset, BatchRenderer(spec, tokenizer))


_worker: LineRenderer


def _render_in_worker(batch: list[Line]) -> RenderedBatch | Failure:
    try:
        return _worker.render(batch)
    except ProgramError as error:
        return error.code, error.message, error.hint


def _map_in_order(
    pool: ProcessPoolExecutor, batches: Iterable[list[Line]], ahead: int
) -> Iterator[RenderedBatch]:
    """Yield the results in the order of the batches, of which at most `ahead` are in memory."""
    pending: deque[Future[RenderedBatch | Failure]] = deque()
    iterator = iter(batches)
    while True:
        pending.extend(
            pool.submit(_render_in_worker, batch) for batch in islice(iterator, ahead - len(pending))
        )
        if not pending:
            return
        result = pending.popleft().result()
        if not isinstance(result, RenderedBatch):
            pool.shutdown(wait=False, cancel_futures=True)
            raise BuildFailed(*result)
        yield result


def _write(spec: RenderSpec, batches: Iterable[RenderedBatch], folder: Path) -> None:
    rows = 0
    omissions = OmissionCounts()
    has_documents = False
    with pa.OSFile(str(folder / ROWS), "wb") as sink, pa.ipc.new_stream(sink, SCHEMAS[spec.kind]) as writer:
        for batch in batches:
            writer.write_batch(batch.columns)
            rows += batch.rows
            omissions.merge(batch.omissions)
            has_documents = has_documents or batch.has_documents
    meta = {
        "rows": rows,
        "omissions": omissions.as_json(),
        "has_documents": has_documents,
        "datasets": _source_hashes(spec),
    }
    files.write_json(folder / META, meta)


def _source_hashes(spec: RenderSpec) -> list[str]:
    """Return the hashes of the datasets of a mixture, or of the dataset."""
    mixture = files.read_json(spec.dataset.with_name(META)) if spec.dataset.name == MIXTURE else None
    hashes: list[str] = (mixture or {}).get("datasets", [spec.dataset_sha256])
    return hashes


def _read_batches(spec: RenderSpec) -> Iterator[list[Line]]:
    """Yield the lines of the dataset in batches that are bounded in number and in size."""
    batch: list[Line] = []
    size = 0
    for number, line in _read_lines(spec):
        batch.append((number, line))
        size += len(line) if isinstance(line, bytes) else 0
        if len(batch) == BATCH_LINES or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _read_lines(spec: RenderSpec) -> Iterator[Line]:
    require_file(spec.dataset)
    with spec.dataset.open("rb", buffering=READ_BUFFER_BYTES) as file:
        if fault := find_file_fault(file):
            raise unreadable(f"{spec.dataset.name}: {fault.message}")
        if spec.max_rows is None:
            yield from iter_lines(file)
            return
        parser = RowParser()
        # A blank line is no row.
        rows = (
            each
            for each in iter_lines(file)
            if not isinstance(each[1], bytes) or parser.parse(each[1]) is not None
        )
        yield from islice(rows, spec.max_rows)
