"""The chats on which the served and the trained model are compared."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from trainers.data.formats import RowFormat, detect_format
from trainers.rendering.render import parse_prompt, read_rows

Chat = list[dict[str, Any]]

# These cover what templates often get wrong: a system message, an earlier turn, white space at the edges,
# characters with several bytes.
STANDARD_CHATS: Sequence[Chat] = (
    [{"role": "user", "content": "Hello! What can you do?"}],
    [
        {"role": "system", "content": "You are a careful assistant."},
        {"role": "user", "content": "한국의 수도는 어디인가요?"},
    ],
    [
        {"role": "user", "content": "What is 17 + 25?"},
        {"role": "assistant", "content": "17 + 25 = 42"},
        {"role": "user", "content": "And twice that?"},
    ],
    [{"role": "user", "content": "  Translate into Korean:\n\tGood morning, everyone.\n"}],
)


def comparison_chats(dataset: Path | None, n_rows: int) -> list[Chat]:
    """Return the standard chats, and the prompts of the first rows of a dataset.

    Raises:
        DatasetFileNotFound: The dataset does not exist.
        DatasetInvalid: A row of it cannot be used.
    """
    if dataset is None:
        return list(STANDARD_CHATS)
    rows = islice(read_rows(dataset), n_rows)
    # A document has no prompt.
    prompts = [parse_prompt(*row, dataset) for row in rows if detect_format(row[1]) is not RowFormat.text]
    return [*STANDARD_CHATS, *(row.prompt for row in prompts if not row.tools)]
