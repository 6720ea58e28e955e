"""Texts, templates and static files: complete, used, vendored unchanged, and in the wheel."""

import ast
import hashlib
import re
import string
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from app.web.catalogue import FOLDER, Language, load_texts, translator
from app.web.static_files import load_files
from tests.conftest import ROOT
from trainers.runtime.error_codes import ErrorCode

WEB = ROOT / "app" / "web"
TEMPLATES = sorted((WEB / "templates").rglob("*.jinja"))
MAX_STATIC_BYTES = 60_000
# Of the packages htmx.org 4.0.1 and uplot 1.6.32 on npm.
VENDORED = {
    "vendor/htmx-4.0.1.min.js": "a0abb04f2f45a1f89d1d4844023245537e5e6014c87b144553e0607b4cc32130",
    "vendor/uplot-1.6.32.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "vendor/uplot-1.6.32.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
# Families of keys whose last part is a value, such as a status.
DYNAMIC = re.compile(r'[thas_ex]*\(\s*"([a-z_.]+[._])" ~')
DURATION = re.compile(r'duration_form\("(\w+)"')
STATEMENT = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
LITERAL = re.compile(r'"([a-z_]+\.[a-z_0-9.]+)"')


def placeholders(text: str | dict[str, str]) -> set[str]:
    forms = [text] if isinstance(text, str) else list(text.values())
    return {name for form in forms for _, name, _, _ in string.Formatter().parse(form) if name}


def test_both_languages_have_the_same_keys_and_placeholders() -> None:
    english, korean = load_texts(Language.en), load_texts(Language.ko)
    assert english.keys() == korean.keys()
    differing = [key for key in english if placeholders(english[key]) != placeholders(korean[key])]
    assert differing == []


def test_every_error_of_a_run_has_a_title_and_advice_and_every_refusal_a_sentence() -> None:
    codes = list(ErrorCode)
    of_runs, of_requests = codes.index(ErrorCode.bad_request), codes.index(ErrorCode.invalid_request)
    expected = {f"failures.{code}.{part}" for code in codes[:of_runs] for part in ("title", "advice")}
    expected |= {f"refusals.{code}" for code in codes[of_runs:of_requests]}
    assert expected - load_texts(Language.en).keys() == set()
    texts = [key for key in load_texts(Language.en) if key.startswith(("failures.", "refusals."))]
    assert [key for key in texts if key.split(".")[1] not in set(ErrorCode)] == []


def test_every_text_is_used() -> None:
    sources = [path.read_text(encoding="utf-8") for path in [*TEMPLATES, *WEB.rglob("*.py")]]
    literal = {key for source in sources for key in LITERAL.findall(source)}
    families = tuple({family for source in sources for family in DYNAMIC.findall(source)})
    literal |= {
        f"common.{item}" for source in sources for item in re.findall(r'duration_form\("(\w+)"', source)
    }
    unused = [key for key in load_texts(Language.en) if key not in literal and not key.startswith(families)]
    assert unused == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_contains_no_text(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    source = re.sub(r"\{#.*?#\}|<!doctype html>|<code>.*?</code>", "", source, flags=re.DOTALL)
    source = STATEMENT.sub("", source)
    attributes = re.findall(r'(?:aria-label|title|placeholder|alt)="([^"]*)"', source)
    assert [each for each in attributes if re.search("[a-zA-Z가-힣]", each)] == []
    shown = re.sub(r"<[^>]*>", "", source)
    assert re.findall("[a-zA-Z가-힣]+", shown) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_contains_no_inline_script_or_style(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert re.findall(r'<style|<script(?![^>]* src=)|\sstyle="|\son\w+="|hx-on|js:|javascript:', source) == []


def test_plurals_have_the_forms_of_their_language() -> None:
    assert translator(Language.en)("jobs.warnings", n=1) == "1 warning"
    assert translator(Language.en)("jobs.warnings", n=3) == "3 warnings"
    assert translator(Language.ko)("jobs.warnings", n=1) == "경고 1건"


def test_a_name_in_a_sentence_does_not_reorder_the_rest_of_it() -> None:
    shown = translator(Language.en)("aliases.promotion_to", name="a\u202e\u2069b")
    assert shown == "Promotion to \u2068a\u202eb\u2069"
    assert translator(Language.en)("aliases.promotion_to", name="한국어") == "Promotion to 한국어"


def test_vendored_files_are_those_of_their_packages() -> None:
    files = load_files()
    assert {name: hashlib.sha256(files[name].content).hexdigest() for name in VENDORED} == VENDORED
    scripts = [name for name in files if name.startswith("vendor/") and not name.endswith(".txt")]
    assert sorted(scripts) == sorted(VENDORED)


def test_static_files_are_small() -> None:
    assert sum(len(file.compressed) for file in load_files().values()) < MAX_STATIC_BYTES


def test_every_file_of_the_pages_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    of_app = settings["tool"]["setuptools"]["package-data"]["app"]
    patterns = [pattern.replace("**/", "") for pattern in of_app]
    files = [path for folder in ("static", "templates", "texts") for path in (WEB / folder).rglob("*")]
    names = [path.relative_to(ROOT / "app").as_posix() for path in files if path.is_file()]
    missing = [
        name for name in names if not any(fnmatch(name, pattern.replace("**/", "")) for pattern in patterns)
    ]
    assert len(names) > 20 and missing == [] and FOLDER.is_dir()


def test_views_use_sessions_only_to_pass_them_on() -> None:
    wrong = []
    for path in WEB.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "sqlmodel":
                wrong += [f"{path.name}: {name.name}" for name in node.names if name.name != "Session"]
            is_call = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if is_call and node.value.id == "session":  # type: ignore[attr-defined]
                wrong.append(f"{path.name}: session.{node.attr}")  # type: ignore[attr-defined]
    assert wrong == []
