"""Filter of rows whose prompt occurs in a held-out dataset, exactly or nearly."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainers.data.files.jsonl import iter_rows
from trainers.data.filters.drops import DropReason, DropRecorder
from trainers.data.filters.near_duplicates import NearDuplicateIndex
from trainers.data.filters.row_filters import NumberedRows
from trainers.data.fingerprint import prompt_text, text_digest
from trainers.data.formats import RowFormat, detect_format


def drop_held_out(
    rows: NumberedRows,
    drops: DropRecorder,
    row_format: RowFormat,
    held_out: Sequence[Path],
    *,
    threshold: float = 1.0,
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield the rows whose prompt does not occur in the held-out files; prompts are equal if they look so.

    With a threshold below 1, similar prompts are dropped too. A digest of each held-out prompt is in memory.
    Raises ValueError for a held-out row of an unknown format.
    """
    exact, index = _read_prompts(
        held_out, None if threshold == 1 else NearDuplicateIndex(threshold, max_remembered=10**9)
    )
    names = [path.name for path in held_out]
    for line, row in rows:
        text = prompt_text(row, row_format)
        found = exact.get(text_digest(text))
        if found is None and index is not None:
            matches = index.matches(text)
            found = matches[0][0] if matches else None
        if found is None:
            yield line, row
        else:
            detail = f"The prompt occurs in the held-out data ({', '.join(names)}, row {found})."
            drops.add(line, DropReason.held_out, detail)


def _read_prompts(
    held_out: Sequence[Path], index: NearDuplicateIndex | None
) -> tuple[dict[bytes, int], NearDuplicateIndex | None]:
    exact: dict[bytes, int] = {}
    number = 0
    for path in held_out:
        for line, row in iter_rows(path):
            row_format = detect_format(row)
            if row_format is None:
                raise ValueError(f"{path.name}, line {line}: the row's fields match no known format.")
            number += 1
            text = prompt_text(row, row_format)
            exact.setdefault(text_digest(text), number)
            if index is not None:
                index.add(number, text)
    return exact, index
