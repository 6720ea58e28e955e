"""Findings in the rows of a large dataset: computed once, in processes whose memory is returned.

They are stored next to the rendered rows, so that a second start reports them again without reading a row.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from trainers.preflight.findings import Finding, findings_to_json
from trainers.rendering.cache.spec import code_version, hash_values
from trainers.runtime import run_dir as files
from trainers.runtime.process_tree import die_with_parent

Check = Callable[[], Iterable[Finding]]

# Smaller files are checked in this process.
MIN_FORKED_BYTES = 2**20


def find_once(entry: Path | None, key: Any, checks: Sequence[Check], size_bytes: int) -> list[Finding]:
    """Return the findings of all checks, in their order.

    `entry` is the folder of the rendered rows, if it stays, and `key` all that the checks depend on besides
    these rows.
    """
    path = None if entry is None else entry / f"findings-{hash_values([key, code_version()])[:16]}.json"
    if path is not None and (stored := files.read_json(path)) is not None:
        return [Finding.model_validate(one) for one in stored["findings"]]
    run = _run_in_children if size_bytes >= MIN_FORKED_BYTES else _run_here
    found = [one for of_check in run(checks) for one in of_check]
    if path is not None and path.parent.is_dir():
        files.write_json(path, {"findings": findings_to_json(found)})
    return found


def _run_here(checks: Sequence[Check]) -> list[list[Finding]]:
    return [list(check()) for check in checks]


def _run_in_children(checks: Sequence[Check]) -> list[list[Finding]]:
    """Run each check in a process of its own; one that fails is repeated here, which raises its error."""
    children = [_fork(check) for check in checks]
    results = []
    for check, (child, pipe) in zip(checks, children, strict=True):
        with os.fdopen(pipe, "rb") as output:
            content = output.read()
        _, status = os.waitpid(child, 0)
        # From a process of ours, and never from a file.
        results.append(pickle.loads(content) if status == 0 else list(check()))  # noqa: S301
    return results


def _fork(check: Check) -> tuple[int, int]:
    """Start a child that computes nothing but the check; return its id and its output."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        os.close(reading)
        die_with_parent()
        with os.fdopen(writing, "wb") as output:
            output.write(pickle.dumps(list(check())))
        status = 0
    finally:
        os._exit(status)
