"""A model's chat template cannot run code, hang the service, or take its memory.

Attacks: templates that leave the sandbox, loop, grow or nest, in every file from which one is read, and
requests that bring a template of their own.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serving.gateway.request_body import RequestLimits, parse_request_body
from serving.http.errors import InvalidRequest
from tests.security.regression import Regression, ignore

ESCAPES = [
    "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch MARKER') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__.items() }}",
    "{{ strftime_now.__globals__['os'].system('touch MARKER') }}",
    "{{ (messages | attr('__class__')).__base__ }}",
    "{{ messages | map(attribute='__class__.__mro__') | list }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{% set ns = namespace(__class__=1) %}{{ ns }}",
]
BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 'x' * 3000000000 }}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{{ '%0999999999d' % 1 }}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
]
FILES: dict[str, Callable[[str], str]] = {
    "tokenizer_config.json": lambda template: json.dumps({"chat_template": template}),
    "chat_template.jinja": lambda template: template,
    "additional_chat_templates/tool_use.jinja": lambda template: template,
}


def make_model(folder: Path, template: str, file: str = "chat_template.jinja") -> None:
    path = folder / "models" / "hostile" / file
    path.parent.mkdir(parents=True)
    path.write_text(FILES[file](template))
    (folder / "models" / "hostile" / "config.json").write_text("{}")


def post_all(client: TestClient) -> list[tuple[int, str]]:
    """Return status and code of each request that names the model."""
    stage = {"stage": "sft", "base": "hostile", "dataset": "rows"}
    job = {"name": "x", "stages": [stage]}
    bodies = {"/deployments": {"name": "x", "model": "hostile"}, "/jobs": job, "/jobs/dry-run": job}
    answers = [client.post(f"/api/v1{path}", json=body) for path, body in bodies.items()]
    return [(answer.status_code, answer.json().get("error", {}).get("code", "")) for answer in answers]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_leaves_its_sandbox_is_refused(
    client: TestClient, make_dataset: Callable[..., object], tmp_path: Path, template: str
) -> None:
    make_dataset("rows")
    marker = tmp_path / "marker"
    make_model(tmp_path, template.replace("MARKER", str(marker)))
    assert {status for status, _ in post_all(client)} == {422}
    assert {code for _, code in post_all(client)} <= {"template_unsafe", "template_invalid"}
    assert not marker.exists()


@pytest.mark.parametrize("template", BOMBS)
def test_a_template_without_end_is_refused_soon(
    client: TestClient, make_dataset: Callable[..., object], tmp_path: Path, template: str
) -> None:
    make_dataset("rows")
    make_model(tmp_path, template)
    started = time.process_time()
    statuses = {status for status, _ in post_all(client)}
    assert statuses == {422} and time.process_time() - started < 20
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("file", FILES)
def test_every_file_with_a_template_is_checked(
    client: TestClient, make_dataset: Callable[..., object], tmp_path: Path, file: str
) -> None:
    make_dataset("rows")
    make_model(tmp_path, ESCAPES[0].replace("MARKER", str(tmp_path / "marker")), file)
    assert post_all(client) == [(422, "template_unsafe")] * 3


@pytest.mark.parametrize(
    "extra",
    [
        {"chat_template": "{{ 1 }}"},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {"chat_template_kwargs": {"tokenizer": "x"}},
        {"tools_template": "{{ 1 }}"},
    ],
)
def test_a_request_brings_no_template(extra: dict[str, object]) -> None:
    body = json.dumps({"model": "m", "messages": [], **extra}).encode()
    hidden = body.replace(b"chat_template", b"\\u0063hat_template")
    for variant in (body, hidden, body.replace(b'"model"', b'"chat_template": "x", "model"')):
        with pytest.raises(InvalidRequest):
            parse_request_body("/v1/chat/completions", variant, RequestLimits())


REGRESSIONS = [
    Regression(
        "folders are not proved",
        "app.models.templates:prove_folder",
        ignore,
        "test_a_template_that_leaves_its_sandbox_is_refused",
    ),
    Regression(
        "one file alone is read",
        "trainers.rendering.template_proof:list_template_files",
        lambda folder: [folder / "tokenizer_config.json"],
        "test_every_file_with_a_template_is_checked",
    ),
    Regression(
        "a request may set variables of any name",
        "serving.gateway.request_body:REFUSED_TEMPLATE_OPTIONS",
        frozenset(),
        "test_a_request_brings_no_template",
    ),
]
