"""Kinds of omissions, and counts of them that processes can merge."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self

MAX_PLACES: Final = 5
MAX_TEXT: Final = 200


class OmissionKind(StrEnum):
    """What the rendered text of a row lacks, or has in another form."""

    completion = "completion"  # All of a completion, so that the model would learn to write nothing.
    text = "text"
    reasoning = "reasoning"
    tool_call = "tool_call"
    tools = "tools"
    unread_field = "unread_field"
    unread_prose = "unread_prose"  # The field's name is unknown, but its text has the form of a sentence.
    # By design of the template.
    white_space = "white_space"
    json_form = "json_form"
    earlier_reasoning = "earlier_reasoning"

    @property
    def is_by_design(self) -> bool:
        """Whether templates do this on purpose, and all of them alike in training and in use."""
        return self in (OmissionKind.white_space, OmissionKind.json_form, OmissionKind.earlier_reasoning)


class Omission(NamedTuple):
    """A part of a row: its field, such as `messages[2].tool_calls[0]`, and its text."""

    kind: OmissionKind
    field: str
    text: str


@dataclass
class OmissionCounts:
    """The rows with omissions, by kind and by field, and the lines of the first."""

    rows: int = 0
    by_kind: Counter[OmissionKind] = field(default_factory=Counter)
    by_field: Counter[tuple[OmissionKind, str]] = field(default_factory=Counter)
    places: dict[OmissionKind, list[tuple[int, str]]] = field(default_factory=dict)

    def add(self, line: int, omissions: Sequence[Omission]) -> None:
        """Count a row with its omissions."""
        self.rows += 1
        if not omissions:
            return
        self.by_kind.update({omission.kind for omission in omissions})
        self.by_field.update({(omission.kind, _without_indexes(omission.field)) for omission in omissions})
        for omission in omissions:
            places = self.places.setdefault(omission.kind, [])
            if len(places) < MAX_PLACES and (not places or places[-1][0] != line):
                places.append((line, f"{omission.field}: {omission.text[:MAX_TEXT]}"))

    def merge(self, other: "OmissionCounts") -> None:
        """Add the counts of later rows."""
        self.rows += other.rows
        self.by_kind.update(other.by_kind)
        self.by_field.update(other.by_field)
        for kind, places in other.places.items():
            mine = self.places.setdefault(kind, [])
            mine += places[: MAX_PLACES - len(mine)]

    def as_json(self) -> dict[str, Any]:
        """Return the counts as values that JSON can represent."""
        return {
            "rows": self.rows,
            "by_kind": dict(self.by_kind),
            "by_field": [[kind, name, count] for (kind, name), count in self.by_field.items()],
            "places": self.places,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the counts that `as_json` returned."""
        return cls(
            rows=values["rows"],
            by_kind=Counter({OmissionKind(kind): count for kind, count in values["by_kind"].items()}),
            by_field=Counter({(OmissionKind(kind), name): count for kind, name, count in values["by_field"]}),
            places={
                OmissionKind(kind): [(line, text) for line, text in places]
                for kind, places in values["places"].items()
            },
        )

    def fields(self, *kinds: OmissionKind) -> list[tuple[str, int]]:
        """Return the fields of these kinds with the number of their rows, the most frequent first."""
        return [(name, count) for (kind, name), count in self.by_field.most_common() if kind in kinds]


def _without_indexes(path: str) -> str:
    return re.sub(r"\[\d+\]", "[]", path)
