"""What programs leave in the text of rows: missing values, placeholders, marks of templates, escapes.

Each function returns the position of the first place, or None. Code is skipped, because it has such text on
purpose.
"""

import re
from collections.abc import Collection
from typing import Final

from trainers.data.texts.code import blank_out_code, is_code

# As pandas, JSON, Python, spreadsheets and JavaScript write them; a sentence such as "None." is an answer.
MISSING_VALUES: Final = frozenset(
    {"nan", "NaN", "NAN", "-nan", "<NA>", "NaT", "null", "NULL", "None", "N/A", "n/a", "#N/A", "undefined"}
    | {"[object Object]", "#VALUE!", "#REF!", "#NAME?", "#DIV/0!", "#NUM!"}
)

# `{text}`, `{{text}}`, `${text}`, `%(text)s`, `[Your Name]`, `<insert date>`. A name of one letter is a set
# or an index in a formula; after `\`, `^`, `}`, `/` or a letter a brace belongs to LaTeX or to a URL.
_PLACEHOLDER: Final = re.compile(
    r"\{\{\s?[A-Za-z_][\w.]{1,40}\s?\}\}|\$\{[A-Za-z_]\w{1,40}\}|%\([A-Za-z_]\w{1,40}\)s|"
    r"(?<![\w\\^{}$/.)])\{[A-Za-z_][A-Za-z_]\w{0,40}\}(?!\})|"
    r"[\[<](?i:insert|your|enter)\s(?i:[a-z]{2,20})(?:\s[^\]>\n\[<]{1,30})?[\]>](?!\()"
)
TEMPLATE_MARKS: Final = (
    # ChatML, Llama 3, Phi, GLM, Command R, gpt-oss, Granite.
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    *("<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end|>", "<|user|>", "<|assistant|>"),
    *("<|system|>", "<|observation|>", "<|endofturn|>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    *("<|return|>", "<|start_of_role|>", "<|end_of_role|>", "<|channel|>", "<|message|>", "[gMASK]"),
    # Llama 2 and Mistral, Gemma, DeepSeek.
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<end_of_turn>", "<eos>", "<bos>"),
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
)
_TEMPLATE_MARK: Final = re.compile("|".join(map(re.escape, TEMPLATE_MARKS)) + r"|</s>\s*\Z")
# Not the commands of LaTeX that begin with `\n`, nor a string that ends with its own line break.
_LATEX_N: Final = (
    r"abla|atural|cong|earrow|eg|eq?|ewcommand|ewline|exists|geq|i|leq|mid|oindent|olimits|onumber|ormal\w*|ot\w*|"
    r"parallel|rightarrow|subset\w*|supset\w*|u|warrow|earrow|leftarrow|exists"
)
_ESCAPED_BREAK: Final = re.compile(rf"\\n(?!(?:{_LATEX_N})(?![a-z]))(?![\"'])")


def find_missing_value(text: str) -> int | None:
    """Return 0 if the whole text is the name of a missing value, such as `nan`."""
    return 0 if len(text) <= 40 and text.strip() in MISSING_VALUES else None


def find_placeholder(text: str) -> int | None:
    """Return the position of a placeholder that was not filled, such as `{text}` or `[Your Name]`."""
    if not any(bracket in text for bracket in "{[<%"):
        return None
    return None if not _PLACEHOLDER.search(text) or is_code(text) else _find_in_prose(_PLACEHOLDER, text)


def find_template_mark(text: str, known: Collection[str] = ()) -> int | None:
    """Return the position of a mark of some chat template that is not one of the known ones."""
    if ("<" not in text and "[" not in text) or not _TEMPLATE_MARK.search(text):
        return None
    # `</s>` also ends struck-out text in HTML.
    ignored = {*known, "</s>"} if "<s>" in text else known
    marks = _TEMPLATE_MARK.finditer(blank_out_code(text))
    return next((mark.start() for mark in marks if mark.group().strip() not in ignored), None)


def find_escaped_line_break(text: str) -> int | None:
    r"""Return the position of `\n` in a text that has no real line break, and is neither code nor JSON."""
    if "\\n" not in text or "\n" in text.strip() or text.lstrip()[:1] in ("{", "["):
        return None
    return None if is_code(text) else _find_in_prose(_ESCAPED_BREAK, text)


def _find_in_prose(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(blank_out_code(text))
    return None if found is None else found.start()
