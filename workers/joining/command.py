"""The commands `python -m workers join` and `leave`."""

import getpass
import json
import os
import pwd
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from trainers.configs import Queue
from workers.doctor.check_result import CheckState
from workers.doctor.report import HostReport
from workers.joining.control_plane import JoinFailed, revoke_credentials
from workers.joining.env_file import NAME, read_env_file
from workers.joining.join import (
    JoinOptions,
    default_data_dir,
    reach_control_plane,
    run_doctor,
    write_variables,
)
from workers.joining.service_manager import ServiceManager, ServiceManagerFailed
from workers.tunnels.tunnel import TunnelBroken

# Without them a worker cannot begin to work; all else it reports.
REQUIRED = ("database", "broker", "artifact store")

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of this host's files. [default: the usual one of the system and user]"),
]


def join_command(
    url: Annotated[str, typer.Option(help="Address of the API, such as https://control.example:8000.")],
    key: Annotated[
        str,
        typer.Option(envvar="TUNESMITH_WORKER_KEY", help="API key with the scope `worker`."),
    ] = "",
    name: Annotated[str, typer.Option(help="Name of this host. [default: its host name]")] = "",
    queue: Annotated[list[Queue] | None, typer.Option(help="Queue to serve; can be repeated.")] = None,
    user: Annotated[str, typer.Option(help="User that runs the worker, if root joins. [default: root]")] = "",
    via: Annotated[
        str, typer.Option(help="SSH server in front of the control plane, such as ssh://me@control.example.")
    ] = "",
    identity: Annotated[
        Path | None, typer.Option(help="File of the private key for it, without a passphrase.")
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            help="File in PEM of the authority that signs the API's certificate, such as Caddy's own."
        ),
    ] = None,
    ca_fingerprint: Annotated[
        str,
        typer.Option(
            help="SHA-256 fingerprint of that certificate, which Caddy then sends; in place of --ca-file."
        ),
    ] = "",
    data_dir: DataDir = None,
    no_start: Annotated[bool, typer.Option("--no-start", help="Write the files only.")] = False,
    print_unit: Annotated[
        bool, typer.Option("--print-unit", help="Print the unit of the worker, and change nothing.")
    ] = False,
) -> None:
    """Join a control plane: get credentials, check this host, and start its worker.

    Run it again to update the host.
    """
    _require_user(user)
    options = JoinOptions(
        url=url.rstrip("/"),
        key=key,
        name=name or socket.gethostname().partition(".")[0],
        data_dir=(data_dir or default_data_dir(user)).expanduser().absolute(),
        queues=tuple(map(str, queue or [])),
        user=user or (getpass.getuser() if os.geteuid() == 0 else ""),
        via=via,
        identity=identity.expanduser().absolute() if identity else None,
        ca_file=ca_file.expanduser().absolute() if ca_file else None,
        ca_fingerprint=ca_fingerprint,
    )
    manager = ServiceManager.find()
    if print_unit:
        print((manager or ServiceManager("systemd", os.geteuid() == 0)).write(options.unit), end="")
        return
    try:
        joined = write_variables(options)
    except (JoinFailed, TunnelBroken, OSError, ValueError) as error:
        sys.exit(f"This host has not joined. {error}")
    print(f"Joined {options.url} (Tunesmith {joined.control_version}) as {options.name}.")
    for notice in joined.notices:
        print(f"Note: {notice}")
    print(f"Wrote {options.env_file} (mode 600).")
    _check_host(options)
    _start_worker(options, manager, start=not no_start)


def leave_command(
    data_dir: DataDir = None, user: Annotated[str, typer.Option(help="As for join.")] = ""
) -> None:
    """Leave the control plane: stop the worker, remove its unit, and revoke the credentials of this host."""
    _require_user(user)
    folder = (data_dir or default_data_dir(user)).expanduser().absolute()
    values = read_env_file(folder / NAME)
    if not values.get("TUNESMITH_CREDENTIAL_ID"):
        sys.exit(f"{folder / NAME} does not exist or is not of a host that has joined; name its --data-dir.")
    identity, ca_file = values.get("TUNESMITH_TUNNEL_KEY_FILE"), values.get("TUNESMITH_CONTROL_CA_FILE")
    options = JoinOptions(
        url=values["TUNESMITH_CONTROL_URL"],
        key=values.get("TUNESMITH_WORKER_KEY", ""),
        name="",
        data_dir=folder,
        via=values.get("TUNESMITH_TUNNEL_URL", ""),
        identity=Path(identity) if identity else None,
        ca_file=Path(ca_file) if ca_file else None,
    )
    manager = ServiceManager.find()
    try:
        if manager is not None and manager.remove():
            print("Stopped the worker and removed its unit.")
        with reach_control_plane(options) as url:
            credential_id = values["TUNESMITH_CREDENTIAL_ID"]
            is_key_known = revoke_credentials(url, options.key, credential_id, options.ca_file)
    except (JoinFailed, TunnelBroken, ServiceManagerFailed) as error:
        sys.exit(f"The credentials of this host are not revoked yet; repeat the command. {error}")
    (folder / NAME).unlink()
    if is_key_known:
        print(f"Revoked the credentials of this host. Its files stay in {folder}.")
    else:
        print(
            "The control plane does not accept the API key of this host any more; the credentials ended with "
            f"the key. Its files stay in {folder}."
        )


def _require_user(user: str) -> None:
    """Exit if the user whose worker is meant does not exist."""
    if user and user not in {entry.pw_name for entry in pwd.getpwall()}:
        sys.exit(
            f"This host has no user {user}. Create it, on Linux with `sudo useradd --create-home {user}`, or "
            "name another one with --user."
        )


def _check_host(options: JoinOptions) -> None:
    """Print the report of the host; exit if the worker could not reach what it needs."""
    try:
        done = run_doctor(options)
    except OSError as error:
        sys.exit(
            f"The user {options.user} cannot start {sys.executable}: {error.strerror}. Install the package "
            "in a folder that this user can read."
        )
    try:
        report = HostReport.model_validate(json.loads(done.stdout))
    except ValueError:
        sys.exit(f"The checks of this host failed: {(done.stderr or done.stdout).strip()[-2000:]}")
    print(report.format_table())
    errors = [check.name for check in report.checks if check.state is CheckState.error]
    if unreachable := [name for name in errors if name in REQUIRED]:
        sys.exit(f"The worker is not started: fix {', '.join(unreachable)}, and repeat the command.")


def _start_worker(options: JoinOptions, manager: ServiceManager | None, *, start: bool) -> None:
    command = " ".join(options.unit.command)
    if manager is None:
        print(f"This host has neither systemd nor launchd. Start the worker with:\n{command}")
        return
    try:
        manager.install(options.unit, start=start)
    except (ServiceManagerFailed, OSError) as error:
        sys.exit(f"The unit of the worker cannot be installed: {error}")
    print(f"{'Started' if start else 'Wrote'} {manager.path}.")
