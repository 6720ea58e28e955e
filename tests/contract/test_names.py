"""The names of classes, functions and packages (see STYLE in CONTRIBUTING.md).

Goal: a class name has one meaning, a function is named by a verb or a noun, and a package can be read as a
whole. Method: parse every module of the packages.
"""

import ast
from collections import Counter, defaultdict

from tests.conftest import ROOT

PACKAGES = ("app", "workers", "trainers", "serving")
MODULES = [module for package in PACKAGES for module in sorted((ROOT / package).rglob("*.py"))]
# Literal names only: the rest of the rule is judgement, and a false alarm would be worked around.
PARTICIPLES = {"told", "shown", "made", "kept", "spelt", "described", "because", "heed", "look"}
MAX_MODULES = 13


def find_repeated_classes(sources: dict[str, str]) -> dict[str, list[str]]:
    """Return the modules of each class name that occurs more than once."""
    modules = defaultdict(list)
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                modules[node.name].append(module)
    return {name: found for name, found in modules.items() if len(found) > 1}


def find_participles(source: str) -> list[str]:
    """Return the functions and methods that are named by one of the participles."""
    nodes = ast.walk(ast.parse(source))
    functions = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [name for name in functions if name.strip("_") in PARTICIPLES]


def read_sources() -> dict[str, str]:
    return {str(module.relative_to(ROOT)): module.read_text(encoding="utf-8") for module in MODULES}


def test_a_class_name_occurs_once() -> None:
    assert find_repeated_classes(read_sources()) == {}


def test_no_function_is_named_by_a_participle() -> None:
    found = {module: find_participles(source) for module, source in read_sources().items()}
    assert {module: names for module, names in found.items() if names} == {}


def test_a_package_has_at_most_thirteen_modules() -> None:
    count = Counter(module.parent for module in MODULES if module.name != "__init__.py")
    too_large = {folder: n for folder, n in count.items() if n > MAX_MODULES}
    assert too_large == {}


def test_a_planted_violation_is_found() -> None:
    twice = {"app/a.py": "class Report: ...", "workers/b.py": "class Outer:\n class Report: ..."}
    assert find_repeated_classes(twice) == {"Report": ["app/a.py", "workers/b.py"]}
    assert find_participles("class Run:\n def _told(self): ...\nasync def made(): ...") == ["made", "_told"]
    assert find_participles("def is_kept(): ...\ndef look_up(): ...") == []
