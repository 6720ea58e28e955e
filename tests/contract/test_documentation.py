"""What README and docs show is true: examples validate, settings exist, links lead somewhere.

Goal: a person who copies an example gets no error. Method: parse every JSON example of a stage with the
configs that the API uses, and resolve every relative link.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import Settings
from app.settings.secret_files import SUFFIX
from tests.conftest import ROOT
from trainers.configs import parse_stage
from trainers.runtime.error_codes import ErrorCode

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "decisions" not in page.parts),
]
ENV_EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
STAGES = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}:{block[:40]}")
    for page in PAGES
    for block in re.findall(r"```json\n(\{\"stage\".*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]


@pytest.mark.parametrize("block", STAGES)
def test_every_stage_example_validates(block: str) -> None:
    parse_stage(json.loads(block))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_setting_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"\bTUNESMITH_([A-Z0-9_]+[A-Z])\b", page.read_text(encoding="utf-8")))
    test_only = {"KEY", "LANGCHAIN_PYTHON", "LM_EVAL_PYTHON", "BENCHMARK", "GATEWAYS"}
    # Read by the client, which has no settings.
    test_only |= {"URL", "API_KEY"}
    settings = {name.upper() for name in Settings.model_fields}
    assert {name for name in named - test_only if not {name, name.removesuffix(SUFFIX)} & settings} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_request_that_a_page_shows_says_that_its_body_is_json(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    requests = re.findall(r"^curl .*?(?:-d|--data) .*$", text, re.MULTILINE)
    assert [one for one in requests if "content-type: application/json" not in one.lower()] == []


def test_every_setting_is_in_the_example_of_env() -> None:
    named = set(re.findall(r"^#TUNESMITH_([A-Z0-9_]+)=", ENV_EXAMPLE, re.MULTILINE))
    assert named == {name.upper() for name in Settings.model_fields}


def test_troubleshooting_has_every_code_of_a_run() -> None:
    codes = list(ErrorCode)
    of_runs = codes[: codes.index(ErrorCode.bad_request)]
    guide = (ROOT / "docs/guides/troubleshooting.md").read_text(encoding="utf-8")
    assert [code for code in of_runs if f"`{code}`" not in guide] == []


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = (folder / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in folder.glob("0*.md") if f"({page.name})" not in listed] == []


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_reference_is_up_to_date() -> None:
    command = [sys.executable, "-m", "docs.generate_reference", "--check"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
