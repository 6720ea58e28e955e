"""Run the standalone gateway over a routes file, or over the deployments of a service.

    python -m serving.gateway --routes routes.json --port 8080
    python -m serving.gateway --api http://127.0.0.1:8000 --api-key-env TUNESMITH_KEY --port 8080

With `--api`, clients need the service's own API keys and have their limits. With a routes file and without
`--client-key-env` every client is accepted, so the gateway then binds to a loopback address only.
"""

import asyncio
import gc
import hmac
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from prometheus_client import PROCESS_COLLECTOR, REGISTRY

from serving.gateway.downstream import ClientIdentity
from serving.gateway.gateway import Authorize, Gateway, allow_local
from serving.gateway.rate_limits import AuthorizedClient, RateLimits
from serving.gateway.request_body import RequestLimits
from serving.gateway.routes import RoutingTable, StaticRoutingTable
from serving.gateway.standalone.access_log import AccessLog
from serving.gateway.standalone.api_keys import KeyVerifier
from serving.gateway.standalone.api_routes import ApiRoutingTable
from serving.gateway.standalone.repeated_task import repeat_task
from serving.gateway.standalone.server import GatewayServer, stop_on_signals
from serving.http.addresses import is_loopback
from serving.http.cross_site import OriginPolicy
from serving.http.errors import InvalidApiKey
from serving.processes.shared_metrics import SHARE_SECONDS
from serving.processes.supervisor import ProcessSupervisor, ServerProcess, bind_socket, reserve_port
from trainers.runtime.command_line import make_help, make_typer

program = make_typer()


@program.command(help=make_help(__doc__))
def main(
    routes: Annotated[
        Path | None,
        typer.Option(help="JSON list of {name, base_url, upstream_model} or {name, targets}."),
    ] = None,
    api: Annotated[str | None, typer.Option(help="URL of a service whose deployments are served.")] = None,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the API key for --api.")] = "",
    client_key_env: Annotated[
        str, typer.Option(help="Environment variable with one API key for all clients.")
    ] = "",
    workers: Annotated[int, typer.Option(min=1, help="Number of processes, one for each core to use.")] = 1,
    max_choices: Annotated[
        int, typer.Option(min=1, help="Maximum of `n` in a request.")
    ] = RequestLimits.max_choices,
    max_prompts: Annotated[
        int, typer.Option(min=1, help="Maximum number of prompts in a request.")
    ] = RequestLimits.max_prompts,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens of a completion.")
    ] = RequestLimits.max_tokens,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of a web page that may send requests, such as https://chat.example."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 chooses a free one.")
    ] = 8000,
) -> None:
    """Serve the OpenAI-compatible gateway until SIGTERM or SIGINT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if (routes is None) == (api is None):
        raise typer.BadParameter("Give either --routes or --api.")
    if routes is not None and not client_key_env and not is_loopback(host):
        sys.exit(
            f"--host {host} can be reached by other machines, and no API key is required. "
            "Set --client-key-env, or use --host 127.0.0.1."
        )
    table = load_routing_table(routes, api, api_key_env)
    authorize = create_authorizer(api, client_key_env)
    limits = RequestLimits(max_choices, max_prompts, max_tokens=max_tokens)
    try:
        origins = OriginPolicy(allow_origin or ())
    except ValueError as error:
        raise typer.BadParameter(f"--allow-origin: {error}.") from error
    # Created before the processes are forked, which share its memory.
    rate_limits = RateLimits(workers)
    log = AccessLog(sys.stdout.fileno())
    try:
        # Bound but not listening: so a port in use is reported at once, and port 0 is the same for all.
        listener = reserve_port(host, port, shared=workers > 1)
    except OSError as error:
        sys.exit(f"--host {host} --port {port}: {error}")
    port = listener.getsockname()[1]
    print(f"The gateway serves http://{host}:{port}/v1", file=sys.stderr, flush=True)
    if workers == 1:
        uvloop.run(serve(Gateway(table, authorize, limits, log, rate_limits, origins), listener))
        return

    def work(process: ServerProcess) -> None:
        REGISTRY.unregister(PROCESS_COLLECTOR)
        rate_limits.use_column(process.index)
        gateway = Gateway(table, authorize, limits, log, rate_limits, origins)
        uvloop.run(serve(gateway, bind_socket(host, port, shared=True), process))

    ProcessSupervisor(workers, work).run()


async def serve(gateway: Gateway, listener: socket.socket, process: ServerProcess | None = None) -> None:
    """Run one process of the gateway."""
    # Objects that exist by now are never freed, so the collector need not traverse them again and again.
    gc.freeze()
    stop = stop_on_signals()
    if process is None:
        await GatewayServer(gateway).serve(listener, stop)
        return
    asyncio.get_running_loop().add_reader(process.parent_alive, stop.set)
    sharing = asyncio.create_task(repeat_task("sharing metrics", process.metrics.write, SHARE_SECONDS))
    await GatewayServer(gateway, process.metrics).serve(listener, stop)
    asyncio.get_running_loop().remove_reader(process.parent_alive)
    sharing.cancel()
    process.metrics.write()


def load_routing_table(routes: Path | None, api: str | None, api_key_env: str) -> RoutingTable:
    """Return the routing table of the routes file or of the service."""
    if api is not None:
        return ApiRoutingTable(api, read_secret(api_key_env) if api_key_env else None)
    assert routes is not None
    try:
        return StaticRoutingTable.from_file(routes)
    except OSError as error:
        sys.exit(f"The routes file {routes} cannot be read: {error.strerror}.")
    except ValueError as error:
        sys.exit(f"The routes file {routes} is not valid. {error}")


def create_authorizer(api: str | None, client_key_env: str) -> Authorize:
    """Return the authorization of clients: one key, the service's keys, or none."""
    if client_key_env:
        return single_key_authorizer(read_secret(client_key_env))
    return KeyVerifier(api) if api is not None else allow_local


def read_secret(name: str) -> str:
    """Return the value of an environment variable, which must not be empty."""
    value = os.environ.get(name)
    if not value:
        sys.exit(f"The environment variable {name} is empty. Set it to an API key.")
    return value


def single_key_authorizer(expected: str) -> Authorize:
    """Return a function that authorizes clients with this key."""

    async def authorize(identity: ClientIdentity) -> AuthorizedClient:
        token = identity.token()
        if token is None or not hmac.compare_digest(token.encode(), expected.encode()):
            raise InvalidApiKey(
                "The API key is missing or not valid. Send it as 'Authorization: Bearer <key>'."
            )
        return AuthorizedClient("client")

    return authorize


if __name__ == "__main__":
    program(prog_name="python -m serving.gateway")
