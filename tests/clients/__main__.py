"""Run the client matrix: build the clients' environments, start the service, and run every program.

python -m tests.clients
python -m tests.clients --engine hf --engine vllm --client LangChain

`TUNESMITH_ENGINE_COMMANDS` names vLLM's command, as for a worker.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.clients.catalogue import CLIENTS, Area, ClientProgram
from tests.clients.environments import build_environments
from tests.clients.matrix import PAGE, ClientResult, render_page, run_client
from tests.clients.service import run_service

cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@cli.command()
def main(
    engine: Annotated[
        list[str] | None, typer.Option(help="Engine; can be repeated. [default: hf, mlx]")
    ] = None,
    client: Annotated[
        list[str] | None, typer.Option(help="Part of a client's name; can be repeated.")
    ] = None,
    area: Annotated[Area | None, typer.Option(help="Run the programs of this area only.")] = None,
    write: Annotated[bool, typer.Option(help="Write docs/clients.md.")] = False,
) -> None:
    """Run the clients, print the tables, and exit with 1 if a case failed."""
    engines = engine or ["hf", "mlx"]
    clients = [one for one in CLIENTS if not client or any(part in one.name for part in client)]
    clients = [one for one in clients if area in (None, one.area)]
    results, versions = run_matrix(clients, engines)
    page = render_page(results, ", ".join(f"{name} ({version})" for name, version in versions.items()))
    print(page)
    if write:
        PAGE.write_text(page)
    sys.exit(any(error for result in results for error in result.cases.values()))


def run_matrix(clients: list[ClientProgram], engines: list[str]) -> tuple[list[ClientResult], dict[str, str]]:
    """Run the programs for generation on each engine, and those for training on the first.

    Returns the results, and the version of each engine.
    """
    build_environments(clients)
    results = []
    with tempfile.TemporaryDirectory() as folder, run_service(Path(folder), engines) as service:
        for client in clients:
            for engine in engines if client.area is Area.generation else engines[:1]:
                print(f"{client.name} ({client.environment}) on {engine}", file=sys.stderr, flush=True)
                results.append(run_client(client, engine, service.variables(engine)))
    return results, service.engine_versions


if __name__ == "__main__":
    cli()
