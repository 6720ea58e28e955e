"""Host keys of SSH servers: given, or trusted on first use; in either case no other key is accepted later."""

import re
from pathlib import Path

KNOWN_HOSTS = "known_hosts"
KEY = re.compile(r"(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) [A-Za-z0-9+/=]{40,2000}")


def write_known_hosts(folder: Path, alias: str, keys: str) -> Path:
    """Write the keys, one a line, as those of the alias; return the file."""
    found = KEY.findall(keys)
    if not found:
        raise ValueError("The host key must be a line such as `ssh-ed25519 AAAA…`.")
    file = folder / KNOWN_HOSTS
    file.write_text("".join(f"{alias} {key}\n" for key in found), encoding="utf-8")
    return file


def read_known_hosts(folder: Path) -> str:
    """Return the recorded keys, one a line; empty before the first connection."""
    file = folder / KNOWN_HOSTS
    return "\n".join(KEY.findall(file.read_text(encoding="utf-8"))) if file.is_file() else ""
