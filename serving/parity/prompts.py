"""The chats on which the served and the trained model are compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.rendering.render import read_prompts

Chat = list[dict[str, Any]]

# Between them they meet what templates get wrong: a system turn, an earlier answer, white space at the edges,
# characters of several bytes.
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


def comparison_chats(dataset: Path | None, rows: int) -> list[Chat]:
    """Those that are always asked, and the prompts of the first rows of a dataset, such as the training one.

    Raises DatasetNotFound or DatasetInvalid.
    """
    if dataset is None:
        return list(STANDARD_CHATS)
    return [*STANDARD_CHATS, *(pair.prompt for pair in read_prompts(str(dataset), rows) if not pair.tools)]
