"""Questions to the person before something is lost or costs money.

A program that can put a question to its person (MCP's elicitation) gets the question. Any other gets it as an
error, and repeats the call with `confirm` after the person's consent.
"""

from collections.abc import Callable
from typing import Any

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resolve import Elicit, Resolve
from pydantic import BaseModel, Field


class Consent(BaseModel):
    """The person's answer."""

    confirmed: bool = Field(description="Whether to do it.")


def ask_before(describe: Callable[[str], str]) -> Resolve:
    """Return the question before a tool with the arguments `id` and `confirm`; it describes what is lost."""

    async def resolve(id: str, context: Context, confirm: str = "") -> Elicit[Consent] | Consent:
        return ask(describe(id), id, confirm, context)

    return Resolve(resolve)


async def ask_before_costs(
    spec: dict[str, Any], context: Context, confirm: str = ""
) -> Elicit[Consent] | Consent:
    """Ask before a job that launches a machine in a cloud."""
    question = describe_costs(spec)
    if question is None:
        return Consent(confirmed=True)
    return ask(question, str(spec.get("name", "job")), confirm, context)


def describe_costs(spec: dict[str, Any]) -> str | None:
    """Return the question before a job that launches a machine in a cloud; None for any other job."""
    host = spec.get("host")
    if not isinstance(host, dict):
        return None
    budget = f"{host.get('max_usd', '?')} US dollars"
    return f"The job launches a machine in the cloud {host.get('cloud')}, for up to {budget}. Start it?"


def ask(question: str, subject: str, confirm: str, context: Context) -> Elicit[Consent] | Consent:
    """Return the question, or the consent that the agent has got; raise ToolError if it must ask first."""
    capabilities = context.client_capabilities
    if capabilities is not None and capabilities.elicitation is not None:
        return Elicit(question, Consent)
    if confirm == subject:
        return Consent(confirmed=True)
    raise ToolError(
        f"{question} Nothing was changed. Ask the person this question; if the answer is yes, call the tool "
        f"again with confirm={subject!r}."
    )


def require(consent: Consent) -> None:
    """Raise ToolError unless the person has agreed."""
    if not consent.confirmed:
        raise ToolError("The person has not confirmed it: nothing was changed.")
