"""Our comparison of final answers and math-verify's, on graded solutions of GSM8K and on hostile text.

math-verify is not a dependency: run this with a Python that has it, once for each program.

python -m tests.benchmarks.trainers.final_answers [ours | math-verify]
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

SHARED = Path(os.environ.get("TUNESMITH_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
HOSTILE = {
    "a tower of powers": r"\boxed{9^{9^{9^{9}}}}",
    "a large factorial": r"\boxed{99999999!}",
    "200,000 digits": "1" * 200_000,
    "50,000 equations": "1=" * 50_000,
    "20,000 parentheses": "(" * 20_000 + "1" + ")" * 20_000,
}


def main() -> None:
    """Print how many grades the program agrees with, and its time per solution and per hostile text."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("program", choices=["ours", "math-verify"], nargs="?", default="ours")
    is_correct = _ours() if arguments.parse_args().program == "ours" else _math_verify()
    solutions = _graded_solutions()
    start = time.perf_counter()
    agreed = sum(is_correct(text, reference) == grade for text, reference, grade in solutions)
    seconds = time.perf_counter() - start
    print(f"{agreed} of {len(solutions)} grades, {1000 * seconds / len(solutions):.2f} ms per solution")
    for name, text in HOSTILE.items():
        start = time.perf_counter()
        is_correct(text, "#### 8")
        print(f"{name}: {time.perf_counter() - start:.3f} s")


def _graded_solutions() -> list[tuple[str, str, bool]]:
    lines = (SHARED / "gsm8k" / "model_solutions.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        (value["solution"], row["ground_truth"], value["is_correct"])
        for row in map(json.loads, lines)
        for value in row.values()
        if isinstance(value, dict)
    ]


def _ours() -> Callable[[str, str], bool]:
    from trainers.metrics.maths.final_answer import judge_answer

    return lambda text, reference: judge_answer(text, reference).correct


def _math_verify() -> Callable[[str, str], bool]:
    from math_verify import parse, verify

    return lambda text, reference: bool(verify(parse(reference.rpartition("####")[2].strip()), parse(text)))


if __name__ == "__main__":
    main()
