"""The address of the service and the API key: from arguments, the environment, or `tunesmith login`.

The file of `login` has a key for each address. A key is sent only to the address that it was stored for.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app.client.api.errors import ClientError

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE, KEY_VARIABLE = "TUNESMITH_URL", "TUNESMITH_API_KEY"


class LoginUnusable(ClientError):
    """The file of `tunesmith login`, or the address, cannot be used."""


@dataclass(frozen=True)
class ServiceAddress:
    """Where the service is, and the key for it."""

    url: str
    key: str | None = None

    def __repr__(self) -> str:
        """Leave the key out: representations end in logs."""
        return f"ServiceAddress({self.url!r})"


def find_address(url: str | None = None, key: str | None = None) -> ServiceAddress:
    """Return the address and key to use: arguments first, then the environment, then the stored login.

    An empty key is none, whatever is stored.
    """
    stored = _read()
    url = _normalize(url or os.environ.get(URL_VARIABLE) or stored.get("default") or DEFAULT_URL)
    if key is None:
        key = os.environ.get(KEY_VARIABLE) or stored.get("keys", {}).get(url)
    # A file with the line ends of Windows leaves one in the variable.
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        # The error of the HTTP library would contain it.
        raise LoginUnusable("The API key has characters that no key has.", "Copy the key again.")
    return ServiceAddress(url, key or None)


def store_login(url: str, key: str | None) -> Path:
    """Store a key for an address, which becomes the default; only this user can read the file."""
    url = _normalize(url)
    stored = _read()
    keys = {**stored.get("keys", {}), url: key}
    return _write({"default": url, "keys": {name: value for name, value in keys.items() if value}})


def remove_login(url: str) -> bool:
    """Forget the key of an address; return whether there was one."""
    stored = _read()
    keys = dict(stored.get("keys", {}))
    removed = keys.pop(_normalize(url), None) is not None
    default = stored.get("default")
    _write({**({"default": default} if default and default != _normalize(url) else {}), "keys": keys})
    return removed


def find_login_file() -> Path:
    """Return the path of the file that `tunesmith login` writes."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "tunesmith" / "login.json"


def _normalize(url: str) -> str:
    """Return the address without a trailing slash or the paths that people copy with it."""
    text = url.strip().rstrip("/")
    for suffix in ("/api/v1", "/v1", "/docs"):
        text = text.removesuffix(suffix)
    if "://" not in text:
        text = f"http://{text}"
    if not text.startswith(("http://", "https://")):
        raise LoginUnusable(f"The address {url!r} cannot be used.", "It must begin with http:// or https://.")
    try:
        parts = urlsplit(text)
        is_usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise LoginUnusable(f"The address {url!r} cannot be used.", "Expected one such as https://host:8000.")
    if "@" in parts.netloc:
        # It would replace the key, and appear in every error.
        raise LoginUnusable("The address has a user or a password in it.", "Leave them out.")
    return text


def _read() -> dict[str, Any]:
    path = find_login_file()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LoginUnusable(
            f"The file {path} cannot be read: {error}.", "Delete it and run `tunesmith login` again."
        ) from error
    if not isinstance(stored, dict):
        raise LoginUnusable(f"The file {path} is not one of `tunesmith login`.", "Delete it.")
    return stored


def _write(content: dict[str, Any]) -> Path:
    path = find_login_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(f".{os.getpid()}")
    # Created with its mode, so that no other user can open it in between.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
