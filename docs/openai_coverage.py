"""The page `openai-coverage.md`: which methods of OpenAI's official client this service has.

The methods come from the client's own tree of resources, and what is served from the document of `/v1`:
neither list is kept by hand.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

from openai import OpenAI

from app.openai_api.application import create_openai_app

# The resources that this service means to have whole, and the share of their methods that is the goal.
WHOLE = (
    "files",
    "uploads",
    "fine_tuning",
    "batches",
    "evals",
    "models",
    "webhooks",
    "chat",
    "completions",
    "embeddings",
)
PARTIAL = ("responses",)
GOAL = 0.95
VERBS = {"_get", "_get_api_list", "_post", "_put", "_patch", "_delete"}
# Views of a resource that return raw responses.
WRAPPERS = ("with_raw_response", "with_streaming_response")
STORED = "Where a deployment stores what it generates."
NOTES = {
    "embeddings.create": "By deployments with `task: embed`, on hf, vllm and sglang.",
    "files.retrieve_content": "The client's older name of `files.content`.",
    "chat.completions.list": STORED,
    "chat.completions.retrieve": STORED,
    "chat.completions.update": STORED,
    "chat.completions.delete": STORED,
    "chat.completions.messages.list": STORED,
    "responses.retrieve": STORED,
    "responses.delete": STORED,
    "responses.input_items.list": STORED,
    "responses.cancel": "There are no responses in the background: close the connection instead.",
    "responses.compact": "Send a shorter `input`.",
    "responses.connect": "There are no connections by WebSocket: use `responses.create` with `stream=True`.",
    "responses.input_tokens.count": "An engine counts at `/tokenize`.",
}


@dataclass(frozen=True)
class Method:
    """A method of the client. Its verb and path are empty if it sends no request of its own."""

    name: str
    verb: str = ""
    path: str = ""

    def is_served(self, routes: set[tuple[str, str]]) -> bool:
        """Return whether one of the routes, with anonymous parameters, is that of the method."""
        return (self.verb, anonymize(self.path)) in routes


def coverage_page() -> str:
    """Return the page."""
    client, routes = OpenAI(api_key="unused"), list_routes()
    sections = []
    whole: list[Method] = []
    for resource in (*WHOLE, *PARTIAL):
        methods = list(list_methods(getattr(client, resource), resource))
        whole += methods if resource in WHOLE else []
        sections.append(f"## {resource}\n\n{_table(methods, routes)}")
    served, total = count_served(whole, routes)
    names = ", ".join(f"`{name}`" for name in WHOLE)
    intro = (
        f"The methods of OpenAI's client for Python {version('openai')}, from its own tree of resources, and "
        f"whether this service serves their requests. Of {names} it has {served} of {total} methods "
        f"({served / total:.0%}). Everything else of the client, such as images, assistants and vector "
        "stores, is not offered: a request gets 404 with the code `unknown_url`. How to move is in "
        "[a guide](guides/moving-from-openai.md)."
    )
    return "\n\n".join(["# Coverage of OpenAI's API", intro, *sections])


def count_served(methods: Sequence[Method], routes: set[tuple[str, str]]) -> tuple[int, int]:
    """Return how many of the methods that send requests are served, and how many there are."""
    sent = [method for method in methods if method.path]
    return sum(method.is_served(routes) for method in sent), len(sent)


def list_routes() -> set[tuple[str, str]]:
    """Return the verbs and paths that are served below /v1."""
    paths: dict[str, Any] = create_openai_app().openapi()["paths"]
    return {(verb, anonymize(path)) for path, operations in paths.items() for verb in operations}


def anonymize(path: str) -> str:
    """Return a path without the names of its parameters."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def list_methods(resource: Any, prefix: str) -> Iterator[Method]:
    """Yield the public methods of a resource and of those below it."""
    for name, value in inspect.getmembers(type(resource)):
        if name.startswith("_") or name in WRAPPERS:
            continue
        if isinstance(value, cached_property):
            yield from list_methods(getattr(resource, name), f"{prefix}.{name}")
        elif inspect.isfunction(value):
            yield Method(f"{prefix}.{name}", *_find_request(value))


def _find_request(method: Any) -> tuple[str, str]:
    """Return the verb and the path of the request in a method's source, or two empty texts."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(method))))
    for node in ast.walk(tree):
        if not (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VERBS
        ):
            continue
        target = node.args[0]
        while isinstance(target, ast.Call):
            target = target.args[0]
        given = [word.value for word in node.keywords if word.arg == "method"]
        verb = given[0] if given else ast.Constant(node.func.attr.removeprefix("_").partition("_")[0])
        if isinstance(target, ast.Constant) and isinstance(verb, ast.Constant):
            return str(verb.value), str(target.value)
    return "", ""


def _table(methods: Sequence[Method], routes: set[tuple[str, str]]) -> str:
    rows = [_row(method, routes) for method in methods]
    return "\n".join(["| method | request | status | note |", "| --- | --- | --- | --- |", *rows])


def _row(method: Method, routes: set[tuple[str, str]]) -> str:
    if not method.path:
        return f"| `{method.name}` | | in the client | {NOTES.get(method.name, '')} |"
    status = "yes" if method.is_served(routes) else "not offered"
    request = f"{method.verb.upper()} {method.path}"
    return f"| `{method.name}` | `{request}` | {status} | {NOTES.get(method.name, '')} |"
