"""How often a JSON schema applies its parts to one place of a value, which references can double repeatedly.

A part applies others to the same place (`allOf`, `$ref`, …), and others to its members (`properties`,
`items`, …). `SchemaCost.applications(d)` bounds the applications at any place d levels below the root, so
that checking a value with n places costs at most n times as much. In a chain of 40 definitions that each
refer twice to the one before, one place gets 2^40.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

# Large unions have hundreds.
MAX_APPLICATIONS = 10_000
# Numbers of parts and of pairs of them that are looked at, so that the analysis itself is bounded.
MAX_PARTS, MAX_PAIRS = 20_000, 50_000
MAX_LEVELS = 64
_SATURATED = 10**12

_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE = ("not", "if", "then", "else", "propertyNames")
_IN_PLACE_MAPS = ("dependentSchemas", "dependencies")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_OTHER_PROPERTIES = ("additionalProperties", "unevaluatedProperties")
_EVERY_ITEM = ("items", "contains", "additionalItems", "unevaluatedItems")
# The keys of members that no part names.
_OTHER_NAME, _OTHER_NUMBER = "\0", -1

Part = dict[str, Any]
Key = str | int


class SchemaCost:
    """The applications of a schema; raises ValueError for one that has too many parts, or never descends."""

    def __init__(self, schema: Any) -> None:
        self._root = schema if isinstance(schema, dict) else {}
        self._anchors: dict[str, list[Part]] = {}
        self._parts: dict[int, Part] = {}
        self._closures: dict[int, Counter[int] | None] = {}
        self._n_pairs = 0
        try:
            self._find_anchors(self._root, is_root=True)
            self._levels = self._measure()
        except RecursionError:
            raise ValueError("the schema refers too deeply") from None

    def applications(self, depth: int) -> int:
        """Return a bound of the applications at any place up to so many levels below the root."""
        return max(self._levels[: depth + 1])

    def _measure(self) -> list[int]:
        """Return the bounds by depth; those beyond the last one are not larger, or beyond all use."""
        members = self._list_members()
        bounds = {head: self._size(head) for head in members}
        root = id(self._root)
        levels = [bounds[root]]
        while len(levels) <= MAX_LEVELS and levels[-1] < _SATURATED:
            below = {
                head: max(
                    (sum(n * bounds[one] for one, n in found.items()) for found in by_key.values()), default=0
                )
                for head, by_key in members.items()
            }
            if below == bounds or not any(below.values()):
                break
            bounds = {head: min(bound, _SATURATED) for head, bound in below.items()}
            levels.append(bounds[root])
        return levels

    def _list_members(self) -> dict[int, dict[Key, Counter[int]]]:
        """Return, of the root and each part that is applied to members, what it applies to which."""
        members: dict[int, dict[Key, Counter[int]]] = {}
        waiting = [self._root]
        while waiting:
            head = waiting.pop()
            if id(head) in members:
                continue
            by_key = members[id(head)] = self._descend(self._close(head))
            waiting += [self._parts[one] for found in by_key.values() for one in found]
        return members

    def _descend(self, closure: Counter[int]) -> dict[Key, Counter[int]]:
        """Return the parts that are applied to each member of a place, to which a closure is applied."""
        parts = [(self._parts[one], n) for one, n in closure.items()]
        names: set[Key] = {_OTHER_NAME, _OTHER_NUMBER}
        for part, _ in parts:
            names.update(_mapping(part, "properties"))
            names.update(range(len(_list(part, "prefixItems")) or len(_list(part, "items"))))
        found: dict[Key, Counter[int]] = {}
        for name in names:
            counts: Counter[int] = Counter()
            for part, n in parts:
                for member in _list_applied(part, name):
                    self._count_pair()
                    self._parts[id(member)] = member
                    counts[id(member)] += n
            if counts:
                found[name] = counts
        return found

    def _close(self, part: Part) -> Counter[int]:
        """Return the parts that are applied where a part is, with their numbers."""
        known = self._closures.get(id(part), ...)
        if known is None:
            raise ValueError("the schema refers to itself without a property or an item between")
        if isinstance(known, Counter):
            return known
        self._parts[id(part)] = part
        if len(self._parts) > MAX_PARTS:
            raise ValueError(f"the schema has more than {MAX_PARTS:,} parts")
        self._closures[id(part)] = None
        closure = Counter({id(part): 1})
        for one in self._list_in_place(part):
            for inner, n in self._close(one).items():
                self._count_pair()
                closure[inner] = min(closure[inner] + n, _SATURATED)
        self._closures[id(part)] = closure
        return closure

    def _size(self, part: int) -> int:
        return min(sum(self._close(self._parts[part]).values()), _SATURATED)

    def _count_pair(self) -> None:
        self._n_pairs += 1
        if self._n_pairs > MAX_PAIRS:
            raise ValueError("the schema has too many parts that are applied together")

    def _list_in_place(self, part: Part) -> Iterator[Part]:
        for name in _IN_PLACE_LISTS:
            yield from _parts(_list(part, name))
        yield from _parts([part.get(name) for name in _IN_PLACE])
        for name in _IN_PLACE_MAPS:
            yield from _parts(list(_mapping(part, name).values()))
        for name in _REFERENCES:
            if isinstance(reference := part.get(name), str):
                yield from self._resolve(reference)

    def _resolve(self, reference: str) -> list[Part]:
        pointer = unquote(reference.removeprefix("#"))
        if pointer and not pointer.startswith("/"):
            return self._anchors.get(pointer, [])
        value: Any = self._root
        for step in pointer.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list):
                value = value[int(name)] if name.isdecimal() and int(name) < len(value) else None
            else:
                value = value.get(name) if isinstance(value, dict) else None
        return list(_parts([value]))

    def _find_anchors(self, value: Any, *, is_root: bool = False) -> None:
        if isinstance(value, dict):
            for name in ("$anchor", "$dynamicAnchor", "$id", "id"):
                anchor = value.get(name)
                if not isinstance(anchor, str):
                    continue
                if name in ("$anchor", "$dynamicAnchor") or anchor.startswith("#"):
                    self._anchors.setdefault(anchor.removeprefix("#"), []).append(value)
                elif name == "$id" and not is_root:
                    raise ValueError(
                        f"the schema has the `$id` {anchor[:100]!r} inside: refer to parts by `#/$defs/NAME`"
                    )
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            self._find_anchors(one)


def _list_applied(part: Part, key: Key) -> Iterator[Part]:
    """Yield what a part applies to the member with this key."""
    if isinstance(key, str):
        named = _mapping(part, "properties")
        # Any pattern may match.
        yield from _parts(list(_mapping(part, "patternProperties").values()))
        yield from _parts([named[key]] if key in named else [part.get(name) for name in _OTHER_PROPERTIES])
        return
    first = _list(part, "prefixItems") or _list(part, "items")
    yield from _parts(first[key : key + 1] if key >= 0 else [])
    yield from _parts([part.get(name) for name in _EVERY_ITEM])


def _parts(values: list[Any]) -> Iterator[Part]:
    # True and false are schemas without parts.
    return (value for value in values if isinstance(value, dict))


def _mapping(part: Part, name: str) -> dict[str, Any]:
    value = part.get(name)
    return value if isinstance(value, dict) else {}


def _list(part: Part, name: str) -> list[Any]:
    value = part.get(name)
    return value if isinstance(value, list) else []
