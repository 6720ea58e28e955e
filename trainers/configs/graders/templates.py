"""Templates of graders: text with variables such as `{{ item.answer }}`, as OpenAI's graders have them.

A variable is a path into the row (`item`) or into the model's completion (`sample`). It is replaced by its
value once; what a value contains is never read as a template.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MAX_TEMPLATE_CHARACTERS = 65_536
MAX_VARIABLES = 100
SAMPLE_VARIABLES = ("output_text", "output_json", "output_tools", "choices")
_NAMESPACES = ("item", "sample")
# A field by its name, by its name in quotes, or an element of a list by its index.
_STEP = re.compile(
    r"""\.(?P<name>[^\s.\[\]{}'"]+)|\[(?P<index>[0-9]{1,6})\]|\[(?P<quote>['"])(?P<key>[^'"]+)(?P=quote)\]"""
)
_NAMESPACE = re.compile(r"[^\s.\[\]{}'\"]*")


class VariableMissing(ValueError):
    """A row has no value for a variable of a template."""


class SampleUnsuitable(ValueError):
    """A completion has no value for a variable, such as `sample.output_json` if it is not JSON."""


@dataclass(frozen=True)
class Variable:
    """A path to a value: the namespace, then names of fields and indices of lists."""

    namespace: str
    path: tuple[str | int, ...]

    def __str__(self) -> str:
        """Return the path as templates write it."""
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return self.namespace + "".join(steps)

    def find(self, values: Mapping[str, Any]) -> Any:
        """Return the value in `{"item": …, "sample": …}`; raises VariableMissing or SampleUnsuitable."""
        value: Any = values[self.namespace]
        for depth, step in enumerate(self.path):
            if _has(value, step):
                value = value[step]
                continue
            found = Variable(self.namespace, self.path[: depth + 1])
            if str(found) == "sample.output_json":
                raise SampleUnsuitable(f"`{{{{ {self} }}}}` needs a completion that is JSON")
            error = VariableMissing if self.namespace == "item" else SampleUnsuitable
            raise error(f"`{{{{ {self} }}}}` has no value: there is no `{found}`")
        return value


@dataclass(frozen=True)
class Template:
    """A parsed template: texts and variables in turn."""

    parts: tuple[str | Variable, ...]

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables in their order."""
        return tuple(part for part in self.parts if isinstance(part, Variable))

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text with the values of the variables; raises VariableMissing or SampleUnsuitable."""
        return "".join(part if isinstance(part, str) else _as_text(part.find(values)) for part in self.parts)


@lru_cache(maxsize=128)
def parse_template(text: str) -> Template:
    """Parse a template; raises ValueError for a variable that no row can have."""
    parts: list[str | Variable] = []
    position = 0
    while (start := text.find("{{", position)) >= 0:
        end = text.find("}}", start)
        if end < 0:
            raise ValueError("`{{` is not closed by `}}`")
        parts += [text[position:start], _parse_variable(text[start + 2 : end].strip())]
        position = end + 2
    parts.append(text[position:])
    if len(parts) > 2 * MAX_VARIABLES + 1:
        raise ValueError(f"the template has more than {MAX_VARIABLES} variables")
    return Template(tuple(part for part in parts if part != ""))


def check_template(text: str) -> str:
    """Return the text if it is a template; raises ValueError."""
    parse_template(text)
    return text


def _parse_variable(text: str) -> Variable:
    namespace = _NAMESPACE.match(text)[0]  # type: ignore[index]  # It matches the empty text.
    path = tuple(_parse_path(text, len(namespace)))
    if namespace not in _NAMESPACES:
        raise ValueError(
            f"`{{{{ {text} }}}}` has an unknown namespace: a variable starts with `item.` or `sample.`"
        )
    if not path:
        raise ValueError(f"`{{{{ {text} }}}}` names no variable: write `{namespace}.NAME`")
    if namespace == "sample" and path[0] not in SAMPLE_VARIABLES:
        known = ", ".join(f"sample.{name}" for name in SAMPLE_VARIABLES)
        raise ValueError(f"`{{{{ {text} }}}}` is not a variable of a completion; there are: {known}")
    return Variable(namespace, path)


def _parse_path(text: str, position: int) -> Iterator[str | int]:
    while position < len(text):
        step = _STEP.match(text, position)
        if step is None:
            raise ValueError(
                f"`{{{{ {text} }}}}` is not a path such as `item.answer` or `sample.output_tools[0].function`"
            )
        yield int(step["index"]) if step["index"] else step["name"] or step["key"]
        position = step.end()


def _has(value: Any, step: str | int) -> bool:
    if isinstance(step, str):
        return isinstance(value, Mapping) and step in value
    return isinstance(value, list | tuple) and step < len(value)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=list)
