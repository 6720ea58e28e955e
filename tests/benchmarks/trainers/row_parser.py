"""The speed of parsers of JSON lines, and whether they see a key that an object contains twice.

Rates are per CPU second in one process, medians of the rounds.

python -m tests.benchmarks.trainers.row_parser
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec

from tests.benchmarks.report import p50, print_table
from trainers.data.files.json_line import RowParser
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems

REPEATED_KEY = b'{"question": "2 + 2?", "answer": "4", "answer": "5"}\n'


class RepeatedKey(ValueError):
    """An object contains a key twice."""


def main() -> None:
    """Measure each parser on lines of each shape, and print a table per shape."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    for shape, lines in _shapes(options.rows).items():
        rates: dict[str, list[float]] = {name: [] for name in PARSERS}
        for _ in range(options.rounds):
            for name, (parse, _) in PARSERS.items():
                rates[name].append(_rate(parse, lines))
        print_table(
            f"{shape}: {len(lines):,} lines of {sum(map(len, lines)) // len(lines)} bytes",
            ["parser", "thousand lines/s", "sees a repeated key"],
            [
                [name, f"{p50(rates[name]) / 1000:.0f}", "yes" if sees() else "no"]
                for name, (_, sees) in PARSERS.items()
            ],
        )


def _rate(parse: Callable[[bytes], Any], lines: list[bytes]) -> float:
    start = time.process_time()
    for line in lines:
        parse(line)
    return len(lines) / (time.process_time() - start)


def _shapes(count: int) -> dict[str, list[bytes]]:
    problems = generate_problems(count, ProblemSplit.train, seed=1)
    question = [{"role": "user", "content": "q"}]
    shapes: dict[str, list[dict[str, Any]]] = {
        "question and answer": [dict(row) for row in problems],
        "chat": [
            {
                "messages": [
                    {"role": "user", "content": row["question"]},
                    {"role": "assistant", "content": row["answer"]},
                ]
            }
            for row in problems
        ],
        "pairs with nested metadata": [
            {
                "prompt": question,
                "chosen": question,
                "rejected": question,
                "meta": {"a": {"b": [1, {"c": 3}]}},
            }
            for _ in problems
        ],
    }
    return {name: [json.dumps(row).encode() + b"\n" for row in rows] for name, rows in shapes.items()}


def _check_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise RepeatedKey
    return row


def _row_parser_sees() -> bool:
    parser = RowParser()
    parser.parse(REPEATED_KEY)
    return parser.duplicate_key == "answer"


def _raises(parse: Callable[[bytes], Any]) -> bool:
    try:
        parse(REPEATED_KEY)
    except ValueError:
        return True
    return False


_HOOK = json.JSONDecoder(object_pairs_hook=_check_keys)
_MSGSPEC = msgspec.json.Decoder()


def _parse_with_hook(line: bytes) -> Any:
    return _HOOK.decode(line.decode())


PARSERS: dict[str, tuple[Callable[[bytes], Any], Callable[[], bool]]] = {
    "RowParser (msgspec, then json)": (RowParser().parse, _row_parser_sees),
    "json with a hook": (_parse_with_hook, lambda: _raises(_parse_with_hook)),
    "json.loads": (json.loads, lambda: _raises(json.loads)),
    "msgspec": (_MSGSPEC.decode, lambda: _raises(_MSGSPEC.decode)),
}

if __name__ == "__main__":
    main()
