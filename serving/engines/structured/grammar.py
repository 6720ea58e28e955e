"""Grammars that completions follow, compiled by llguidance for the tokens of a model.

A grammar is text in llguidance's dialect of Lark. Bounds on its compilation and on each token are part of the
parser, so that no schema can stop the engine.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

COMPILER_STACK_BYTES = 64 * 2**20
# Tokens of so many vocabularies are kept; one of 150,000 tokens takes about 100 MiB and a second.
MAX_VOCABULARIES = 4
# Where the compiler says where it is, rather than what is wrong.
LOCATION = re.compile(r"^(at \d+\(\d+\): )?(failed to compile JSON schema: )?|(: json-schema:/.*)?$")
# The pattern, marks below it, and what is wrong with it.
PATTERN_ERROR = re.compile(r"regex parse error:\n\s*(?P<pattern>.*)\n(?:.*\n)*?error: (?P<reason>.*)")
UNSUPPORTED_KEYWORDS = re.compile(r"^Unimplemented keys: \[(.*)\]$")

Result = TypeVar("Result")


class GrammarInvalid(ValueError):
    """A grammar that cannot be compiled; the message contains the reason."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, prepared for grammars."""

    tokens: Any
    special_ids: dict[str, int]

    def encode(self, text: str) -> list[int]:
        """Return tokens of a text, special ones where the text contains their names."""
        ids: list[int] = self.tokens.tokenize_str(text, parse_special=True)
        return ids

    def terminal(self, text: str) -> str:
        """Return the terminal of a grammar for a text, which may be the name of a special token."""
        if text in self.special_ids:
            return f"<[{self.special_ids[text]}]>"
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar."""

    initial: Any

    def start(self) -> Any:
        """Return llguidance's matcher for a completion, at its beginning."""
        return self.initial.deep_copy()


def load_vocabulary(tokenizer: Any, size: int, eos_ids: frozenset[int]) -> Vocabulary:
    """Return the prepared tokens of a tokenizer, for logits of `size` tokens. Raises GrammarInvalid."""
    if not tokenizer.is_fast:
        raise GrammarInvalid("its tokenizer has no tokenizer.json")
    with _VOCABULARY_LOCK:
        known = _VOCABULARIES.setdefault(tokenizer, {})
        if eos_ids not in known:
            # Adapters have tokenizers of their own, which are mostly copies of their base's.
            serialized = tokenizer.backend_tokenizer.to_str()
            digest = hashlib.sha256(serialized.encode("utf-8", "surrogatepass")).digest()
            known[eos_ids] = _prepare(digest, size, tuple(sorted(eos_ids)), _Uncompared(serialized))
        return known[eos_ids]


def compile_grammar(vocabulary: Vocabulary, text: str) -> Grammar:
    """Compile a grammar. Raises GrammarInvalid."""
    matcher = _call_with_large_stack(lambda: _compile(vocabulary, text))
    if matcher.is_error():
        raise GrammarInvalid(_explain(matcher.get_error()))
    return Grammar(matcher)


def _compile(vocabulary: Vocabulary, text: str) -> Any:
    # Loaded with the first request that needs it: most engines serve plain text.
    import llguidance

    limits = llguidance.LLParserLimits(verbose_errors=False)
    return llguidance.LLMatcher(vocabulary.tokens, text, limits=limits, log_level=0)


@dataclass(frozen=True)
class _Uncompared:
    """A value that is equal to every other, so that a cache ignores it."""

    value: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Uncompared)

    def __hash__(self) -> int:
        return 0


_VOCABULARY_LOCK = threading.Lock()
_VOCABULARIES: WeakKeyDictionary[Any, dict[frozenset[int], Vocabulary]] = WeakKeyDictionary()


@lru_cache(maxsize=MAX_VOCABULARIES)
def _prepare(digest: bytes, size: int, eos_ids: tuple[int, ...], serialized: _Uncompared) -> Vocabulary:
    import llguidance
    from tokenizers import Tokenizer

    if not eos_ids:
        raise GrammarInvalid("it has no token that ends a completion")
    try:
        tokens = llguidance.LLTokenizer(serialized.value, n_vocab=size, eos_token=list(eos_ids))
    except ValueError as error:
        raise GrammarInvalid(f"its tokenizer has no bytes for each token ({_first_line(error)})") from error
    added = Tokenizer.from_str(serialized.value).get_added_tokens_decoder()
    special_ids = {token.content: number for number, token in added.items() if token.special}
    return Vocabulary(tokens, special_ids)


def _call_with_large_stack(function: Callable[[], Result]) -> Result:
    """Return the result of a function that recurses deeply in native code, where an overflow is a crash."""
    results: list[Result] = []
    with _STACK_LOCK:
        previous = threading.stack_size(COMPILER_STACK_BYTES)
        try:
            thread = threading.Thread(target=lambda: results.append(function()), name="grammar")
            thread.start()
        finally:
            threading.stack_size(previous)
    thread.join()
    return results[0]


_STACK_LOCK = threading.Lock()


def _explain(error: str) -> str:
    if found := PATTERN_ERROR.search(error):
        return f"the pattern {found['pattern']!r} cannot be used: {found['reason']}"
    reason = LOCATION.sub("", _first_line(error))
    if keywords := UNSUPPORTED_KEYWORDS.match(reason):
        names = keywords[1].replace('"', "'")
        return f"the keyword {names} cannot be enforced"
    return reason[:1].lower() + reason[1:]


def _first_line(error: object) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else "the compiler gives no reason"
