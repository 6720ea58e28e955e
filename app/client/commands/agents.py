"""Agents: the MCP server and the skill."""

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from app.client.api.errors import ClientError
from app.client.commands.output import note, out

SKILL_FOLDER = Path("tunesmith")


class AgentsUnavailable(ClientError):
    """The package mcp is not installed, or the skill cannot be written."""


def mcp() -> None:
    """Serve the tools of agents by the Model Context Protocol, on standard input and output.

    The configuration of an agent names this command, such as {"command": "tunesmith", "args": ["mcp"]}.
    The service is that of `tunesmith login`, TUNESMITH_URL or --url.
    """
    if find_spec("mcp") is None:
        raise AgentsUnavailable(
            "`tunesmith mcp` needs the package mcp, which is not installed.",
            "Install it with `pip install 'tunesmith[mcp]'`.",
        )
    from app.client.agents.server import serve

    asyncio.run(serve())


def skill(
    to: Annotated[
        Path | None,
        typer.Option(help="Folder of skills, such as .claude/skills, to write tunesmith/SKILL.md into."),
    ] = None,
) -> None:
    """Print the skill for agents, or write it where an agent reads its skills."""
    from app.client.agents.skill import read_skill

    if to is None:
        out().print(read_skill(), markup=False, highlight=False, soft_wrap=True)
        return
    target = to / SKILL_FOLDER / "SKILL.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(read_skill(), encoding="utf-8")
    note(f"Written to {target}.")
