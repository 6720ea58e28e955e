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
