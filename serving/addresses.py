"""Who can reach an address: this machine alone, a private network, or everyone."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_private(host: str) -> bool:
    """Whether an address is loopback or of a private network; a name is judged when it is resolved."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host != ""
    return not (address.is_global or address.is_unspecified or address.is_multicast)


def host_name(header: str) -> str:
    """The name in a Host header, without its port and without the brackets of an IPv6 address."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def from_here(host: str, address: str) -> bool:
    """Whether a request comes from this machine, and under a name of it.

    The address keeps out the network; the Host header keeps out web pages that rebind their own name to
    127.0.0.1.
    """
    return is_loopback(host_name(host)) and is_loopback(address)
