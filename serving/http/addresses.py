"""Who can reach an address: this machine alone, a private network, or everyone."""

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_private(host: str) -> bool:
    """Whether no address that a name or a literal stands for is open to everyone.

    What stands for none is nothing that anybody could listen on.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return host != ""
    return host != "" and not any(_is_open(str(resolved[0])) for *_, resolved in found)


def _is_open(literal: str) -> bool:
    address = ipaddress.ip_address(literal.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_global or address.is_unspecified or address.is_multicast


def host_name(header: str) -> str:
    """The name in a Host header, without its port and without the brackets of an IPv6 address."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def is_local_request(host: str, address: str) -> bool:
    """Whether a request comes from this machine, and under a name of it.

    The address keeps out the network; the Host header keeps out web pages that rebind their own name to
    127.0.0.1.
    """
    return is_loopback(host_name(host)) and is_loopback(address)
