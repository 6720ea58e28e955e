"""The MCP server: the tools, and the skill that says how to use them."""

from importlib.metadata import version

from mcp.server import MCPServer

from app.client.agents.data_tools import DataTools
from app.client.agents.job_tools import JobTools
from app.client.agents.model_tools import ModelTools
from app.client.agents.skill import read_skill
from app.client.clients import AsyncClient

SKILL_ADDRESS = "tunesmith://skill"
INSTRUCTIONS = (
    "Tunesmith fine-tunes, evaluates and serves language models. Order of work: check_data, repair_data if "
    "there are faults, push_data, dry_run, preflight, submit_job (train, evaluate with a baseline, deploy), "
    f"follow_job until finished, show_scores, chat. The resource {SKILL_ADDRESS} explains each step. The "
    "`next` of each result names the usual next call. Tools that lose something or cost money ask the person."
)


def create_server(client: AsyncClient) -> MCPServer:
    """Return a server whose tools use this client; its caller closes the client."""
    # The programs of agents show what a server prints as errors.
    server = MCPServer(
        "tunesmith", instructions=INSTRUCTIONS, version=version("tunesmith"), log_level="WARNING"
    )
    for tools in (DataTools(client), JobTools(client), ModelTools(client)):
        tools.add_to(server)
    server.resource(SKILL_ADDRESS, title="How to fine-tune with Tunesmith", mime_type="text/markdown")(
        read_skill
    )
    return server


async def serve() -> None:
    """Serve one agent by standard input and output, until it disconnects."""
    async with AsyncClient() as client:
        await create_server(client).run_stdio_async()
