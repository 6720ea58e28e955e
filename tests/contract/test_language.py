"""A short list of phrases that have no legitimate use here (see STYLE in CONTRIBUTING.md)."""

import re
import subprocess

from tests.conftest import ROOT

# Literal phrases only: the rest of the rule is judgement, and a false alarm would be worked around.
PHRASES = (
    "told apart", "is told", "are told", "says so", "goes on", "tells of", "says of", "knows of", "heeds",
    "mends", "whoever", "that which", "for as long as", "left alone",
    "as it stands", "as they come", "cannot be had", "may be had", "rings the bell", "answers with",
    "stands beside", "lies beside", "told by", "gives back", "being told", "bears with",
)  # fmt: skip
# This test, and the record that lists old names.
EXCLUDED = ("tests/contract/test_language.py", "docs/decisions/0015-names.md")


def tracked_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    suffixes = (".py", ".md", ".yml", ".yaml", ".toml", ".example", "Makefile", ".api", ".gpu")
    return [file for file in listed.splitlines() if file.endswith(suffixes) and file not in EXCLUDED]


def find_phrases(text: str) -> list[str]:
    words = " ".join(text.lower().split())
    found = [phrase for phrase in PHRASES if phrase in words]  # Much faster than the expressions.
    return [phrase for phrase in found if re.search(rf"(?<![\w-]){phrase}(?![\w-])", words)]


def test_no_file_has_any_of_the_phrases() -> None:
    # One test, because 1,900 would cost more in pytest than in the search.
    found = {file: find_phrases((ROOT / file).read_text(encoding="utf-8")) for file in tracked_files()}
    assert {file: phrases for file, phrases in found.items() if phrases} == {}


def test_a_phrase_is_found_across_a_line_break() -> None:
    assert find_phrases("The run goes\n    on.") == ["goes on"]
    assert find_phrases("It TELLS OF it; a man mends.") == ["tells of", "mends"]
    assert find_phrases("The run continues, and the commands amends-mends.") == []
