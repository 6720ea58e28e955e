"""The state of one completion in a grammar, which is in force from its first token or from a trigger on."""

from dataclasses import dataclass
from typing import Any

import regex

from serving.engines.structured.grammar import Grammar, Vocabulary


@dataclass(frozen=True)
class Constraint:
    """A grammar that completions follow: from the first token, or from a text that matches `trigger` on.

    The text before the trigger is free. A completion that contains no trigger is not changed at all.
    """

    grammar: Grammar
    vocabulary: Vocabulary
    eos_ids: frozenset[int]
    trigger: "regex.Pattern[str] | None" = None


class ConstraintState:
    """The state of one completion; only the generation thread uses it."""

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint
        self._matcher: Any = None if constraint.trigger else constraint.grammar.start()
        self._text = ""
        self._trigger = constraint.trigger

    @property
    def in_force(self) -> bool:
        """Whether the grammar restricts the next token."""
        return self._matcher is not None

    @property
    def error(self) -> str | None:
        """Why the grammar cannot be followed any further, such as an exceeded bound."""
        if self._matcher is None or not self._matcher.is_error():
            return None
        return str(self._matcher.get_error()).splitlines()[0]

    def explain_end(self) -> str | None:
        """Return why a completion that no token may follow is incomplete; None if it is complete."""
        if self.error is None and self._matcher is not None and not self._matcher.is_accepting():
            return "no token of the model may follow"
        return self.error

    def allows(self, token: int) -> bool:
        """Return whether the grammar allows a token next; this is much cheaper than all allowed tokens."""
        if token in self._constraint.eos_ids:
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.validate_tokens([token]) == 1)

    def allowed_tokens(self) -> bytes:
        """Return a bit for each token of the vocabulary, the lowest bit of a byte first."""
        bits: bytes = self._matcher.compute_bitmask()
        return bits

    def advance(self, token: int, text: str) -> None:
        """Follow a token of the completion, and the text that it completes."""
        if self._matcher is not None:
            self._matcher.consume_token(token)
        elif self._trigger is not None:
            self._search(self._trigger, text)

    def _search(self, trigger: "regex.Pattern[str]", text: str) -> None:
        self._text += text
        found = trigger.search(self._text, partial=True)
        if found is None:
            self._text = ""
            if trigger.pattern.startswith(r"\A"):
                # It could match only at the beginning.
                self._trigger = None
        elif found.partial:
            if not trigger.pattern.startswith(r"\A"):
                self._text = self._text[found.start() :]
        else:
            self._begin(self._text[found.start() :])

    def _begin(self, text: str) -> None:
        """Put the grammar in force, after a text that is already generated."""
        self._text = ""
        matcher = self._constraint.grammar.start()
        tokens = self._constraint.vocabulary.encode(text)
        # One token may contain the trigger and a text that the grammar does not allow; then it is no call.
        if matcher.validate_tokens(tokens) == len(tokens):
            matcher.consume_tokens(tokens)
            self._matcher = matcher
