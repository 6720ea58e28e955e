"""A program that runs math-verify within a limit of time and memory.

It reads a JSON object with `response` and `reference` from each line of standard input, and writes one with
`verdict`. A pair that takes more CPU time or memory ends the program. `verification` is its only caller.

    python -m trainers.metrics.maths.verify_program MEMORY_BYTES CPU_SECONDS
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

EXIT_OUT_OF_MEMORY = 3


def main(arguments: list[str]) -> None:
    """Judge lines until standard input ends."""
    from math_verify import parse, verify

    memory_bytes, cpu_seconds = int(arguments[0]), float(arguments[1])
    _limit_memory(memory_bytes)
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        pair = json.loads(line)
        # The kernel ends the process when the time has passed, also inside one long operation.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            gold = parse(pair["reference"], parsing_timeout=None)
            answer = parse(pair["response"], parsing_timeout=None)
            is_right = bool(gold) and verify(gold, answer, timeout_seconds=None)
        except MemoryError:
            os._exit(EXIT_OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        verdict = ("right" if is_right else "wrong") if gold else "no_reference"
        sys.stdout.write(json.dumps({"verdict": verdict}) + "\n")
        sys.stdout.flush()


def _limit_memory(memory_bytes: int) -> None:
    """Limit the process to what it uses now and `memory_bytes` more; only Linux enforces this."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        limit_bytes = int(statm.read_text().split()[0]) * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


if __name__ == "__main__":
    main(sys.argv[1:])
