"""Korean-English translation as chat rows, in both directions and with several wordings of the request."""

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import chain
from typing import Final

from trainers.data.files.aligned import TranslationPair
from trainers.data.fingerprint import fingerprint
from trainers.data.formats import Row


class Direction(StrEnum):
    """Source and target language."""

    ko_en = "ko_en"
    en_ko = "en_ko"


# The first wording of each direction is the plainest; evaluation uses only that one.
WORDINGS: Final = {
    Direction.ko_en: (
        "Translate this Korean text into English.\n\n{text}",
        "Korean to English:\n{text}",
        "What does the following mean in English? Answer with the translation only.\n\n{text}",
        "Please render the Korean below in natural English.\n\n{text}",
        "다음 글을 영어로 번역해 주세요.\n\n{text}",
        "{text}\n\n위 문장을 영어로 옮기세요.",
    ),
    Direction.en_ko: (
        "Translate this English text into Korean.\n\n{text}",
        "English to Korean:\n{text}",
        "How would you say the following in Korean? Answer with the translation only.\n\n{text}",
        "Please render the English below in natural Korean.\n\n{text}",
        "다음 글을 한국어로 번역해 주세요.\n\n{text}",
        "{text}\n\n위 문장을 한국어로 옮기세요.",
    ),
}


def translation_rows(
    pairs: Iterable[TranslationPair],
    *,
    directions: Sequence[Direction] = (Direction.ko_en, Direction.en_ko),
    wordings: int = 6,
    seed: int = 0,
) -> Iterator[Row]:
    """Yield a row of `messages` per pair and direction, with its `direction` and the pair's `line` and hash.

    Each row has one of the first `wordings` of its direction, chosen by a seeded hash of the pair, so that it
    does not depend on the row's position. Raises ValueError for an invalid number of wordings.
    """
    available = min(len(WORDINGS[direction]) for direction in Direction)
    if not 1 <= wordings <= available:
        raise ValueError(f"`wordings` is {wordings}: set it to 1 to {available}.")
    for pair in pairs:
        for direction in directions:
            yield _row(pair, direction, wordings, seed)


def _row(pair: TranslationPair, direction: Direction, wordings: int, seed: int) -> Row:
    korean, english = pair.korean.strip(), pair.english.strip()
    source, target = (korean, english) if direction is Direction.ko_en else (english, korean)
    wording = WORDINGS[direction][fingerprint([direction, korean, english], seed) % wordings]
    return {
        # A sentence may contain braces, which format() would interpret as fields.
        "messages": [
            {"role": "user", "content": wording.replace("{text}", source)},
            {"role": "assistant", "content": target},
        ],
        "direction": direction.value,
        "line": pair.line,
        # A split uses this to keep both directions of a pair in the same part.
        "pair": f"{fingerprint([korean, english]):016x}",
    }


def extract_source(request: str) -> str | None:
    """Return the text in a request that `translation_rows` wrote; None for any other request."""
    for wording in chain.from_iterable(WORDINGS.values()):
        before, _, after = wording.partition("{text}")
        if request.startswith(before) and request.endswith(after) and len(request) > len(wording) - 6:
            return request[len(before) : len(request) - len(after)]
    return None
