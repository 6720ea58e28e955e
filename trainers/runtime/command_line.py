"""Settings that the command lines of all programs share."""

import re

import typer


def make_typer() -> typer.Typer:
    """Create a command line with plain help and error messages, and without shell completion."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def make_help(docstring: str | None) -> str:
    """Return a module's docstring as help text whose examples keep their lines, indented or not."""
    return re.sub(r"\n\n(?= {4}|python -m )", "\n\n\b\n", docstring or "")
