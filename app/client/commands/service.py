"""The service itself: starting it here, and the commands of its operators, which are in other packages.

Those packages are loaded when such a command is called: `pip install tunesmith` does not install what they
need, and `tunesmith jobs` must not wait for it.
"""

import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec

import httpx2
import typer

from app.client.address import URL_VARIABLE, find_address
from app.client.api.errors import ClientError
from app.client.commands.output import JsonOption, note, out, print_json

# The command, the module whose `main` runs it, and its help here.
OPERATOR_COMMANDS = {
    "keys": ("app.__main__", "Create, list and revoke API keys, on the host of the service."),
    "migrate": ("app.__main__", "Migrate the database."),
    "verify": ("app.__main__", "Read every stored byte and compare it with its hash."),
    "gc": ("app.__main__", "Apply the retention settings now."),
    "backup": ("app.__main__", "Back up the database and the artifacts."),
    "restore": ("app.__main__", "Restore a backup."),
    "move": ("app.__main__", "Move the embedded database into PostgreSQL."),
    "rescue": ("app.__main__", "Move models from OpenAI that are switched off."),
    "import-evals": ("app.__main__", "Import evals that were exported from OpenAI."),
    "worker": ("workers.__main__", "Run a worker on this host."),
    "doctor": ("workers.__main__", "Check this host: hardware, packages, disk, network."),
    "join": ("workers.__main__", "Join this host to a service elsewhere."),
    "leave": ("workers.__main__", "Undo `join`."),
}
OPERATOR_PANEL = "On the host of the service or of a worker"
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
READY_POLL_SECONDS = 0.2


class ExtraMissing(ClientError):
    """The packages of the service are not installed."""


def add_operator_commands(cli: typer.Typer) -> None:
    """Add the commands of operators, whose arguments and help are those of their own programs."""
    for name, (module, text) in OPERATOR_COMMANDS.items():
        command = cli.command(
            name,
            help=text,
            add_help_option=False,
            context_settings=PASS_ON,
            rich_help_panel=OPERATOR_PANEL,
        )
        command(_make_delegate(name, module))


def up(context: typer.Context, as_json: JsonOption = False) -> None:
    """Start the service on this machine: the API, the gateway and a worker. Ctrl-C stops it.

    Other options are those of `python -m app`, such as --port, --no-worker and --with-examples. With --json,
    the only output is one object with the address and the process, once the service is ready.
    """
    _require_service("up", "app.__main__")
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *context.args], stdout=subprocess.PIPE, text=True
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # A terminal sends Ctrl-C to both, and a second SIGINT would end open requests at once; a supervisor
        # sends its signal to this process only.
        signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
    assert process.stdout is not None
    for line in process.stdout:
        url = line.rpartition("http")[2].partition("/docs")[0].strip() if "/docs" in line else ""
        if not url:
            # What the service prints; with JSON, the output is for a program.
            print(line, end="", flush=True, file=sys.stderr if as_json else sys.stdout)
            continue
        address = f"http{url}"
        _wait_until_ready(process, address)
        if as_json:
            print_json({"url": address, "pid": process.pid, "ready": process.poll() is None})
            continue
        out().print(f"Tunesmith is ready at {address}")
        note(describe_next_commands(address))
    raise typer.Exit(process.wait())


def describe_next_commands(address: str) -> str:
    """Return what to do with a service that has started; commands elsewhere find only the usual address."""
    use = "Open it in a browser, or use another terminal: tunesmith data check FILE, "
    if find_address().url == address:
        return f"{use}tunesmith train FILE --base MODEL"
    return f"{use}tunesmith --url {address} train FILE --base MODEL (or set {URL_VARIABLE} to this address)"


def _make_delegate(name: str, module: str):  # type: ignore[no-untyped-def] # typer reads the signature
    def delegate(context: typer.Context) -> None:
        _require_service(name, module)
        program = import_module(module)
        arguments = context.args if name == "worker" else [name, *context.args]
        program.run_command(arguments, prog_name="tunesmith worker" if name == "worker" else "tunesmith")

    return delegate


def _require_service(command: str, module: str) -> None:
    needed = ("sqlmodel", "fastapi", "celery", module.partition(".")[0])
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ExtraMissing(
            f"`tunesmith {command}` is part of the service, whose packages are not installed: "
            f"{', '.join(missing)}.",
            "Install them with `pip install 'tunesmith[api]'`, on a host that trains with "
            "`pip install 'tunesmith[api,trainer,evaluation]'`.",
        )


def _wait_until_ready(process: "subprocess.Popen[str]", address: str) -> None:
    while process.poll() is None:
        try:
            if httpx2.get(f"{address}/readyz", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(READY_POLL_SECONDS)
