"""Classification of addresses by who can reach them: this machine, a private network, or everyone."""

import ipaddress
import re
import socket
from collections.abc import Mapping
from functools import lru_cache

from serving.http.errors import MalformedRequest

HOST = re.compile(r"(?:(?P<name>[A-Za-z0-9._-]+)|\[(?P<address>[0-9A-Fa-f:.]+)\])(?::[0-9]{1,5})?", re.ASCII)
# Proxies add these. One that adds none cannot be distinguished from a local client.
FORWARDING_HEADERS = frozenset(
    {
        b"cf-connecting-ip",
        b"client-ip",
        b"fly-client-ip",
        b"forwarded",
        b"forwarded-for",
        b"true-client-ip",
        b"via",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"x-envoy-external-address",
        b"x-forwarded",
        b"x-forwarded-by",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-forwarded-scheme",
        b"x-forwarded-server",
        b"x-forwarded-ssl",
        b"x-original-forwarded-for",
        b"x-original-host",
        b"x-real-ip",
    }
)


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    """Return True if a host name or address refers to this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_private(host: str) -> bool:
    """Return True if none of the addresses of a host name or literal can be reached from the internet.

    A name that does not resolve counts as private, since nothing can listen on it.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return host != ""
    return host != "" and not any(_is_public(str(resolved[0])) for *_, resolved in found)


def _is_public(literal: str) -> bool:
    address = ipaddress.ip_address(literal.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_global or address.is_unspecified or address.is_multicast


class InvalidHost(MalformedRequest):
    """The Host header is more than a name and a port."""

    def __init__(self, header: bytes) -> None:
        super().__init__(f"The header Host is {header.decode('latin-1')!r}. Send a name, and perhaps a port.")


@lru_cache(maxsize=1024)
def host_name(header: bytes) -> str:
    """Return the name in a Host header, without the port and without the brackets of an IPv6 address.

    Raises:
        InvalidHost: The header has other parts, such as `localhost:80@evil`.
    """
    found = HOST.fullmatch(header.decode("latin-1"))
    if found is None:
        raise InvalidHost(header)
    return (found["name"] or found["address"]).lower()


def is_forwarded(headers: Mapping[bytes, bytes]) -> bool:
    """Return True if a reverse proxy sent the request on behalf of another client."""
    return not FORWARDING_HEADERS.isdisjoint(headers)


def is_local_request(host: bytes, address: str, forwarded: bool) -> bool:
    """Return True if a request comes from this machine and its Host header names this machine.

    The address excludes other machines, and the forwarding headers exclude those whose requests a proxy on
    this machine sends. The Host header excludes web pages that rebind their own name to 127.0.0.1.
    """
    return not forwarded and is_loopback(address) and host != b"" and is_loopback(host_name(host))
