"""The command line `tunesmith`.

Exit codes: 0 success; 1 a job, a gate or a file has failed; 2 the command or its request is wrong; 3 the
service does not respond or refuses the key; 4 a wait has timed out; 130 Ctrl-C.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.metadata import version
from typing import Annotated, Any

import typer

from app.client.address import URL_VARIABLE
from app.client.api.errors import ClientError, WaitInterrupted
from app.client.commands import (
    account,
    agents,
    data,
    following,
    jobs,
    models,
    planning,
    scores,
    service,
    storage,
)
from app.client.commands.output import ExitCode, exit_code_of, leave_pipe, note, print_error

cli = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    pretty_exceptions_enable=False,
    help="Fine-tune, evaluate and serve language models with a Tunesmith service.",
    epilog="Exit codes: 0 success, 1 a job, a gate or a file has failed, 2 the command is wrong, 3 the "
    "service is unavailable or refuses the key, 4 timeout, 130 Ctrl-C.",
)


def _explain_interruption(function: Callable[..., None]) -> Callable[..., None]:
    """Print what continues after Ctrl-C: typer itself would exit without a word."""

    @wraps(function)
    def command(*arguments: Any, **options: Any) -> None:
        try:
            function(*arguments, **options)
        except WaitInterrupted as stopped:
            note(stopped.message)
            raise typer.Exit(ExitCode.interrupted) from None

    return command


COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Start": {"up": service.up, "login": account.login, "logout": account.logout, "status": account.status},
    "Work": {
        "train": jobs.train,
        "eval": scores.evaluate,
        "compare": scores.compare,
        "apply": jobs.apply,
        "preflight": planning.preflight,
        "stage": planning.stage,
        "deploy": models.deploy,
        "undeploy": models.undeploy,
        "chat": models.chat,
    },
    "Jobs": {
        "jobs": jobs.list_jobs,
        "job": jobs.show_job,
        "logs": following.logs,
        "wait": following.wait,
        "top": following.top,
        "pause": jobs.pause,
        "resume": jobs.resume,
        "cancel": jobs.cancel,
        "retry": jobs.retry,
        "diff": jobs.diff,
    },
    "Lists": {
        "models": models.list_models,
        "deployments": models.list_deployments,
        "aliases": models.list_aliases,
        "hosts": models.list_hosts,
        "storage": storage.storage,
    },
    "For agents": {"mcp": agents.mcp, "skill": agents.skill},
}
for _panel, _commands in COMMANDS.items():
    for _name, _function in _commands.items():
        _settings = service.PASS_ON if _name == "up" else None
        cli.command(_name, rich_help_panel=_panel, context_settings=_settings)(
            _explain_interruption(_function)
        )
cli.add_typer(data.data_cli, name="data", rich_help_panel="Work")
cli.add_typer(models.get_cli, name="get", rich_help_panel="Work")
service.add_operator_commands(cli)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(version("tunesmith"))  # noqa: T201 — the output of the option
        raise typer.Exit


@cli.callback()
def _configure(
    url: Annotated[
        str | None, typer.Option(help="Address of the service. [default: TUNESMITH_URL, or that of login]")
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit."),
    ] = False,
) -> None:
    if url is not None:
        os.environ[URL_VARIABLE] = url


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit."""
    try:
        cli(arguments, prog_name="tunesmith")
    except ClientError as error:
        print_error(error)
        sys.exit(exit_code_of(error))
    except BrokenPipeError:
        leave_pipe()
    except OSError as error:
        # A file that a command writes: exit code 1 would say that a job has failed.
        print_error(ClientError(f"{error.filename or 'A file'} cannot be used: {error.strerror or error}."))
        sys.exit(ExitCode.usage)
