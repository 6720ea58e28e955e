"""The service that the commands use: login, logout, status."""

import os
import sys
from typing import Annotated

import typer

from app.client.address import KEY_VARIABLE, find_address, remove_login, store_login
from app.client.clients import Client
from app.client.commands.output import JsonOption, connect, note, out, print_json


def login(
    url: Annotated[
        str | None, typer.Argument(help="Address of the service. [default: TUNESMITH_URL]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Store an address and an API key for this user, after a request with them has succeeded.

    The key is read from standard input, or asked for. A service on this machine without keys needs none.
    """
    address = find_address(url)
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        if sys.stdin.isatty():
            key = typer.prompt(f"API key of {address.url} (empty for none)", hide_input=True, default="")
        else:
            key = sys.stdin.readline()
    key = key.strip() or None
    # An empty key is none: the stored one stays until this one has worked.
    with Client(address.url, key or "", retry_seconds=1) as client:
        caller = client.whoami()
    path = store_login(address.url, key)
    if as_json:
        stored = {"key_id": caller.key_id, "scopes": caller.scopes, "path": str(path)}
        print_json({"url": address.url, **stored})
        return
    who = f"the key {caller.key_id}" if caller.key_id else "no key, as on this machine"
    note(f"Logged in to {address.url} with {who} ({', '.join(caller.scopes)}). Stored in {path}.")


def logout(as_json: JsonOption = False) -> None:
    """Forget the stored key of the service."""
    address = find_address()
    is_removed = remove_login(address.url)
    if as_json:
        print_json({"url": address.url, "removed": is_removed})
        return
    note(f"The key of {address.url} is forgotten." if is_removed else "No key was stored.")


def status(as_json: JsonOption = False) -> None:
    """Print the address, the key and the state of the service."""
    with connect() as client:
        readiness, caller = client.readiness(), client.whoami()
    if as_json:
        print_json({"url": client.address.url, "readiness": readiness, "caller": caller})
        return
    console = out()
    console.print(f"{client.address.url}  {'ready' if readiness.ready else 'NOT READY'}")
    console.print(f"key      {caller.key_id or 'none'} ({', '.join(caller.scopes)})")
    console.print(f"queues   {', '.join(readiness.queues) or 'none'}")
    for name in ("database", "store", "broker", "workers", "hosts", "background", "examples"):
        if (state := getattr(readiness, name)) != "ok":
            console.print(f"{name:8} {state}", markup=False)
