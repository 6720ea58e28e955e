"""What the console of a machine shows that only the machine itself can write."""

import re

_BLOCK = re.compile(r"-----BEGIN SSH HOST KEY KEYS-----(.*?)-----END SSH HOST KEY KEYS-----", re.DOTALL)
_KEY = re.compile(
    r"\b(ssh-ed25519|ecdsa-sha2-nistp(?:256|384|521)|ssh-rsa) ([A-Za-z0-9+/]{40,1200}={0,2})(?=\s|$)"
)
MAX_KEYS = 8


def find_ssh_host_keys(console: str) -> tuple[str, ...]:
    """Return the public SSH host keys that cloud-init prints at the first boot, each as `type base64`.

    The first block counts: a later one may have been written by a program on the machine.
    """
    block = _BLOCK.search(console)
    if block is None:
        return ()
    return tuple(dict.fromkeys(f"{kind} {key}" for kind, key in _KEY.findall(block[1])))[:MAX_KEYS]
