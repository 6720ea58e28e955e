"""How a method of the client becomes a tool: its errors are texts that say what to do."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

from app.client.api.errors import ClientError, RequestRefused

READS = ToolAnnotations(read_only_hint=True, idempotent_hint=True)
ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False)
DESTROYS = ToolAnnotations(read_only_hint=False, destructive_hint=True)


def add_tool(
    server: MCPServer, function: Callable[..., Awaitable[Any]], annotations: ToolAnnotations
) -> None:
    """Offer a function as a tool; its documentation is the tool's description."""

    @wraps(function)
    async def call(*arguments: Any, **options: Any) -> Any:
        try:
            return await function(*arguments, **options)
        except ClientError as error:
            raise ToolError(describe_error(error)) from error

    server.add_tool(call, annotations=annotations)


def describe_error(error: ClientError) -> str:
    """Return the message, what to do, and each invalid field."""
    lines = [error.message, *([error.hint] if error.hint else [])]
    if isinstance(error, RequestRefused):
        lines += [f"- {field['field']}: {field['message']}" for field in error.fields]
        if error.used_by:
            lines.append(f"Used by {', '.join(error.used_by)}.")
        if error.code:
            lines.append(f"[{error.code}]")
    return "\n".join(lines)
