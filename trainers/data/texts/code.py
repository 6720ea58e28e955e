"""Code in text, which contains on purpose what would be a fault in prose."""

import re
from typing import Final

_CODE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_CODE_LINE: Final = re.compile(
    r"^[ \t]*(?:def|class|import|from|function|const|let|var|public|private|return|#include|package|using|"
    r"SELECT)\b|"
    r"\bf[\"']|\.format\(|[;{][ \t]*$|=>|::|\\begin\{",
    re.MULTILINE,
)


def is_code(text: str) -> bool:
    """Return whether the text outside of marked code has a line that is probably code."""
    return _CODE_LINE.search(blank_out_code(text)) is not None


def blank_out_code(text: str) -> str:
    """Return the text with spaces for code between backticks, so that positions stay the same."""
    return _CODE.sub(lambda code: " " * len(code.group()), text) if "`" in text else text
