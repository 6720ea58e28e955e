"""The README's tables are those of the code."""

from pathlib import Path

from app.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_is_listed_with_its_meaning() -> None:
    for name, field in Settings.model_fields.items():
        (line,) = [line for line in README.splitlines() if line.startswith(f"| `TUNESMITH_{name.upper()}` |")]
        assert field.description
        assert field.description in line


def test_every_module_stands_in_the_tree() -> None:
    tree = README.split("## The tree")[1].split("```")[1].splitlines()
    listed = sorted(line.split()[0] for line in tree if line.strip() and line.split()[0].endswith(".py"))
    modules = [
        path.name
        for package in ("app", "workers", "trainers", "serving", "migrations")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and "versions" not in path.parts
    ]
    assert listed == sorted(modules)
