"""The skill: what an agent reads to take a raw file to a served and compared model."""

from importlib.resources import files


def read_skill() -> str:
    """Return the text of the skill, with its head."""
    return files("app.client.agents").joinpath("SKILL.md").read_text(encoding="utf-8")
