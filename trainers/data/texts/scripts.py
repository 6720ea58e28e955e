"""Scripts of letters, by which a language is recognized: Hangul, Latin, Han and Kana.

That finds untranslated sentences and other alphabets; it does not distinguish English from French.
"""

import re
from typing import Final

HANGUL: Final = re.compile(r"[가-힣\u1100-\u11FF\u3130-\u318F\uA960-\uA97F\uD7B0-\uD7FF]")
LATIN: Final = re.compile(r"[A-Za-z\u00AA-\u024F\u1E00-\u1EFF]")
HAN: Final = re.compile(r"[\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\U00020000-\U0003134F]")
KANA: Final = re.compile(r"[\u3041-\u3096\u309D-\u309F\u30A1-\u30FA\u30FC-\u30FF\u31F0-\u31FF\uFF66-\uFF9F]")

# The minimum for Korean is low because names stay in Latin letters, of which a syllable needs several.
MIN_KOREAN_SHARE: Final = 0.3
MIN_ENGLISH_SHARE: Final = 0.8


def script_share(script: re.Pattern[str], text: str) -> float | None:
    """Return the share of a script in the letters of a text; None without letters, such as in a date."""
    letters = sum(map(str.isalpha, text))
    return len(script.findall(text)) / letters if letters else None
