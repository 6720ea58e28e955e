"""Text compared as people read it: two texts that look the same are equal once they are folded.

Files from macOS contain decomposed Hangul, web pages contain zero-width and no-break spaces, and Korean input
methods write fullwidth punctuation. Compared byte by byte, each of these hides that two rows are the same.
"""

import re
import unicodedata
from typing import Final

# Characters without a glyph: Unicode's Default_Ignorable_Code_Point, and annotation anchors. Other format
# characters, such as the Arabic number sign, are visible.
INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)


def fold_text(text: str) -> str:
    """Return the text in NFKC, without invisible characters, and with single spaces as white space.

    Case and punctuation are kept. Superscripts, ligatures and fullwidth forms become their plain forms.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        visible = INVISIBLE.sub("", text)
        if visible != text:
            # Letter and accent may have been separated by an invisible character.
            text = unicodedata.normalize("NFKC", visible)
    return " ".join(text.split())


def is_blank(text: str) -> bool:
    """Return whether the text has no visible character."""
    # Nearly every text begins with such a character; the comparison does not read further.
    if "!" <= text < "\x7f" or "가" <= text < "\ud7a4":
        return False
    return not INVISIBLE.sub("", text).strip()
