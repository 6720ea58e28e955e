"""math-verify as an independent judge of maths answers, in a child process with limits.

The library parses text into formulas of sympy and simplifies them, which hostile text can make endless. Its
own time limit is a signal, which neither interrupts a long operation in C nor works outside the main thread.
So it runs in a child whose CPU time and memory the kernel limits, and a row that exceeds them costs a child.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from importlib.metadata import version
from typing import IO, Any

from trainers.configs.metrics import MathVerify
from trainers.metrics.maths import verify_program
from trainers.metrics.maths.final_answer import MARK, exact_match
from trainers.metrics.metric import EvaluatedRow, MetricValues

MAX_LISTED = 200
CPU_SECONDS = 3.0
MEMORY_BYTES = 1 << 30
# For a child that does not run at all; imports of sympy take seconds on a busy host.
RESPONSE_SECONDS = 120.0


class Verdict(StrEnum):
    """What math-verify makes of a response."""

    right = "right"
    wrong = "wrong"
    no_reference = "no_reference"  # The reference could not be parsed, so that nothing can be compared.
    limit = "limit"  # The row exceeded the limit of time or memory.


class MathVerifyMetric:
    """Share of the rows that math-verify calls right; `details` lists disagreements with our comparison."""

    def __init__(self, _config: MathVerify) -> None:
        pass

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference is empty, if it is."""
        return None if row.reference.strip() else "has no reference"

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Judge the first response of each row. A reference that cannot be parsed excludes its row."""
        verdicts = judge_all([(row.response, row.reference) for row in rows])
        values = [None if v is Verdict.no_reference else float(v is Verdict.right) for v in verdicts]
        ours = [exact_match(row.response, row.reference) for row in rows]
        differ = [
            {"row": row.row, "math_verify": verdict, "maths_exact_match": our}
            for row, verdict, our in zip(rows, verdicts, ours, strict=True)
            if (verdict is Verdict.right) != our
        ]
        known = [value for value in values if value is not None]
        details = {
            "disagreements": len(differ),
            "disagreeing_rows": differ[:MAX_LISTED],
            "limit_exceeded": [r.row for r, v in zip(rows, verdicts, strict=True) if v is Verdict.limit],
            "references_not_parsed": verdicts.count(Verdict.no_reference),
        }
        signature = f"math_verify|version:{version('math-verify')}|sympy:{version('sympy')}"
        value = sum(known) / len(known) if known else 0.0
        return MetricValues(value, values, signature, is_share=True, details=details)


def judge_all(pairs: Sequence[tuple[str, str]], cpu_seconds: float = CPU_SECONDS) -> list[Verdict]:
    """Judge pairs of response and reference in order; a child that exceeds its limits is replaced."""
    verdicts: list[Verdict] = []
    while len(verdicts) < len(pairs):
        n_before = len(verdicts)
        with _open_child(cpu_seconds) as child:
            verdicts += _judge_until_end(child, pairs[n_before:])
        if len(verdicts) < len(pairs):
            # The child ended at this pair.
            verdicts.append(Verdict.limit)
    return verdicts


def _judge_until_end(child: "subprocess.Popen[bytes]", pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    assert child.stdin is not None and child.stdout is not None
    verdicts: list[Verdict] = []
    if _read_line(child.stdout) is None:
        raise RuntimeError(f"the program of math-verify did not start; its status is {child.poll()}")
    for response, reference in pairs:
        request = {"response": response, "reference": _cut_reference(reference)}
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
        reply = _read_line(child.stdout)
        if reply is None:
            break
        verdicts.append(Verdict(reply["verdict"]))
    return verdicts


@contextlib.contextmanager
def _open_child(cpu_seconds: float) -> Iterator["subprocess.Popen[bytes]"]:
    # The folder of this code, and no secret: only what Python needs to start.
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    child = subprocess.Popen(
        [sys.executable, "-m", verify_program.__name__, str(MEMORY_BYTES), str(cpu_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()


def _read_line(stream: IO[bytes]) -> dict[str, Any] | None:
    """Return the next reply, or None if the child has ended or does not reply in time."""
    # The child writes a line only after it has read one, so nothing is left in a buffer here.
    ready, _, _ = select.select([stream], [], [], RESPONSE_SECONDS)
    line = stream.readline() if ready else b""
    reply: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
    return reply


def _cut_reference(reference: str) -> str:
    """Return what follows the mark of the answer, which math-verify does not know; else the whole text."""
    _, mark, answer = reference.rpartition(MARK)
    return answer.strip() if mark else reference
