"""A model's response, a prompt or a name cannot run code in the browser of a person who reads a report.

Attacks: HTML, scripts, templates and Markdown in every text of an evaluation; the response's own headers.
"""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.tables import Run
from tests.integration.app.stored_evaluations import make_result, make_rows, store_evaluations, write_folder
from tests.security.regression import Regression, unchanged
from trainers.reports.documents import _environment

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</pre></div><iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "</title></style><svg onload=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "{{ 7 * 7 }}{% for x in y %}",
    "[x](javascript:alert(1)) ![x](http://attacker.example/x.png)",
    "```\n<b>outside</b>\n```\n# heading",
    "````\n</details>",
    "| a | b |\n| --- | --- |\n<!-- comment",
    "$$\\alpha$$ \x1b[31m\x00 \u202e",
]
LOADING = ("src", "href", "srcset", "action", "data")
ALLOWED_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "b", "div", "span"),
    *("table", "tr", "th", "td", "code", "img", "pre", "details", "summary"),
}


class TagCollector(HTMLParser):
    """Collects the elements of a page, and the addresses that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses |= {
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        }


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an evaluation that has the attacks in each of its texts."""
    values = {"model": [float(n % 2) for n, _ in enumerate(ATTACKS)], "baseline": [0.5] * len(ATTACKS)}
    rows = make_rows(values, ATTACKS)
    for row, attack in zip(rows, ATTACKS, strict=True):
        row["reference"] = attack
        for model in row["models"].values():
            model["responses"] = [attack]
    everything = " ".join(ATTACKS)
    details: dict[str, Any] = {"slices": [{everything: everything}]}
    result = make_result(values, signature=everything, warnings=ATTACKS, details=details)
    hostile = {"model": everything, "provenance": {everything: {"x": everything}}}
    models = [each.model_copy(update=hostile) for each in result.models]
    folder = tmp_path_factory.mktemp("hostile")
    return write_folder(folder, result.model_copy(update={"models": models}), rows)


def test_no_text_becomes_an_element_of_the_page(hostile: Path) -> None:
    page = (hostile / "report.html").read_text(encoding="utf-8")
    collector = TagCollector()
    collector.feed(page)
    assert collector.tags <= ALLOWED_TAGS
    assert not {name for name in collector.attributes if name.startswith("on")}
    assert all(address.startswith("data:image/svg+xml;base64,") for address in collector.addresses)
    assert page.count("&lt;script&gt;alert(1)") > 10 and "{{ 7 * 7 }}" in page


def test_no_text_becomes_markup_of_the_markdown(hostile: Path) -> None:
    report = (hostile / "report.md").read_text(encoding="utf-8")
    outside, fence = [], None
    for line in report.splitlines():
        marks = re.match(r"`{3,}", line)
        if fence is None and marks:
            fence = marks.group()
        elif fence is not None and line == fence:
            fence = None
        elif fence is None:
            outside.append(line)
    assert fence is None
    text = re.sub(r"\(data:image/png;base64,[^)]*\)", "", "\n".join(outside))
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\((?!data:)|(?<!\\)`", text), text
    headings = [line for line in outside if line.startswith("#")]
    assert all(heading.startswith(("# Evaluation", "## ", "### Row ")) for heading in headings)


def test_the_response_forbids_everything_that_a_page_could_load_or_run(
    client: TestClient, make_job: Callable[..., list[Run]], tmp_path: Path
) -> None:
    (evaluation,) = store_evaluations(make_job, tmp_path, {"model": [1, 0]})
    report = client.get(f"/api/v1/evaluations/{evaluation.id}/report")
    policy = report.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "sandbox", "base-uri 'none'", "form-action 'none'"} <= set(policy)
    assert not any("script" in part or "*" in part or "http" in part for part in policy)
    assert report.headers["x-content-type-options"] == "nosniff"
    assert report.headers["content-type"] == "text/html; charset=utf-8"
    markdown = client.get(f"/api/v1/evaluations/{evaluation.id}/report", params={"format": "markdown"})
    assert markdown.headers["content-type"] == "text/markdown; charset=utf-8"
    assert markdown.headers["content-security-policy"] == report.headers["content-security-policy"]


def test_a_job_cannot_compare_folders_of_the_worker(client: TestClient) -> None:
    stage = {"stage": "compare", "evaluations": [{"folder": "/etc"}, {"folder": "/root"}]}
    refused = client.post("/api/v1/jobs", json={"name": "x", "stages": [stage]})
    fields = [each["field"] for each in refused.json()["error"]["fields"]]
    assert refused.status_code == 422
    assert fields == ["stages.0.evaluations.0", "stages.0.evaluations.1"]
    short = client.post(
        "/api/v1/comparisons", json={"evaluations": [{"folder": "/etc"}, {"folder": "/root"}]}
    )
    assert short.status_code == 422


REGRESSIONS = [
    Regression(
        "texts are written into the page as they are",
        "trainers.reports.documents:_environment",
        lambda autoescape: _environment(autoescape=False),
        "test_no_text_becomes_an_element_of_the_page",
    ),
    Regression(
        "texts are written into Markdown as they are",
        "trainers.reports.documents:escape_inline",
        unchanged,
        "test_no_text_becomes_markup_of_the_markdown",
    ),
    Regression(
        "a response can end its code block",
        "trainers.reports.documents:fence",
        lambda text: f"```text\n{text}\n```",
        "test_no_text_becomes_markup_of_the_markdown",
    ),
]
