"""Classification of addresses by who can reach them: this machine, a private network, or everyone."""

import ipaddress
import socket


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


def host_name(header: str) -> str:
    """Return the name in a Host header, without the port and without the brackets of an IPv6 address."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def is_local_request(host: str, address: str) -> bool:
    """Return True if a request comes from this machine and its Host header names this machine.

    The address excludes other machines. The Host header excludes web pages that rebind their own name to
    127.0.0.1.
    """
    return is_loopback(host_name(host)) and is_loopback(address)
