"""Where webhooks may be sent: a client chooses the URL, and the service must not reach its own network.

A URL is parsed once, by the URL standard of browsers, and stored as that parser writes it, so that no second
parser can read another host in it. Its form is checked when it is stored; the addresses of its host are
checked at each connection, because a name can resolve to others later.
"""

import ipaddress
import socket
from dataclasses import dataclass
from typing import Self

from pydantic import HttpUrl, TypeAdapter, ValidationError

from app.http.errors import field_error
from app.settings import Settings

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_CHARACTERS = 2000
DEFAULT_PORTS = {"https": 443, "http": 80}
FIRST_UNPRIVILEGED_PORT = 1024
# Not reserved according to `ipaddress` of Python 3.11, or addresses with which clouds serve credentials.
REFUSED_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",  # IETF protocol assignments; 192.0.0.192 is Oracle's metadata service.
            "168.63.129.16/32",  # Azure's platform service.
            "192.88.99.0/24",  # The anycast address of 6to4 relays.
            "fec0::/10",  # Site-local, the predecessor of unique-local addresses.
            "2001::/23",  # IETF protocol assignments, with Teredo.
            "64:ff9b:1::/48",  # Local translation to IPv4.
        ),
    )
)
# Networks whose addresses contain an IPv4 address, with its position in bits from the right.
EMBEDDED_IPV4 = (
    (ipaddress.IPv6Network("::/96"), 0),
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)


class DestinationRefused(Exception):
    """The host of a webhook is not one to which the service may connect."""


@dataclass(frozen=True)
class AllowedHosts:
    """The hosts and networks that the operator has allowed although they are private."""

    names: frozenset[str]
    networks: tuple[Network, ...]

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Read the setting `webhook_allowed_hosts`, whose entries are networks, addresses or names."""
        networks, names = [], set()
        for entry in settings.webhook_allowed_hosts:
            try:
                networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                names.add(entry.lower())
        return cls(frozenset(names), tuple(networks))

    def include(self, host: str) -> bool:
        """Return whether a name or literal address is listed itself."""
        literal = parse_literal(host)
        return host in self.names if literal is None else self.include_address(literal)

    def include_address(self, address: IPAddress) -> bool:
        """Return whether an address is in a listed network."""
        return any(address in network for network in self.networks if network.version == address.version)


@dataclass(frozen=True)
class Destination:
    """A parsed URL: what to connect to, and what to request there."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def check_url(url: str, settings: Settings) -> str:
    """Return a URL in the form in which it is stored; raises UnprocessableContent with what is wrong."""
    try:
        parsed = TypeAdapter(HttpUrl).validate_python(url)
    except ValidationError as error:
        raise field_error("url", f"{error.errors()[0]['msg']}.") from None
    normal = str(parsed)
    if len(normal) > MAX_URL_CHARACTERS:
        raise field_error("url", f"It has {len(normal)} characters; the limit is {MAX_URL_CHARACTERS}.")
    if parsed.username is not None or parsed.password is not None:
        raise field_error("url", "It must not contain a user name or password. The signature is the proof.")
    if parsed.fragment is not None:
        raise field_error("url", "It must not contain a fragment (#…), which is never sent.")
    allowed, destination = AllowedHosts.from_settings(settings), parse_stored_url(normal)
    if allowed.include(destination.host):
        return normal
    if destination.scheme != "https":
        raise field_error("url", "It must begin with https://. Plain http is for hosts in the setting "
                          "TUNESMITH_WEBHOOK_ALLOWED_HOSTS only.")  # fmt: skip
    if destination.port != DEFAULT_PORTS["https"] and destination.port < FIRST_UNPRIVILEGED_PORT:
        raise field_error("url", f"The port {destination.port} is not allowed; use 443, or 1024 and above.")
    literal = parse_literal(destination.host)
    if literal is not None and not is_public(literal):
        raise field_error(
            "url",
            "Its host is an address of a private or reserved network. An operator can allow it with the "
            "setting TUNESMITH_WEBHOOK_ALLOWED_HOSTS.",
        )
    return normal


def parse_stored_url(url: str) -> Destination:
    """Return the parts of a URL that `check_url` returned, by the same parser."""
    parsed = TypeAdapter(HttpUrl).validate_python(url)
    assert parsed.host is not None and parsed.port is not None, "an HTTP URL has a host and a port"
    path = parsed.path or "/"
    target = f"{path}?{parsed.query}" if parsed.query is not None else path
    return Destination(parsed.scheme, parsed.host.strip("[]").lower(), parsed.port, target)


def resolve(host: str, port: int, allowed: AllowedHosts) -> list[str]:
    """Return the addresses of a host, as literals to connect to.

    One that is not public makes all of them refused: a public service has none, and an attacker's name has.

    Raises:
        DestinationRefused: An address is neither public nor allowed. The message does not name the address,
            which may be a secret of the network.
        OSError: The name does not resolve.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    literals = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    if host not in allowed.names:
        for literal in literals:
            address = ipaddress.ip_address(literal)
            if not is_public(address) and not allowed.include_address(address):
                raise DestinationRefused(
                    "The host is in a private or reserved network, to which webhooks are not sent."
                )
    return literals


def is_public(address: IPAddress) -> bool:
    """Return whether an address is one of the internet, also where an IPv6 address contains an IPv4 one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        for network, shift in EMBEDDED_IPV4:
            if address in network:
                return is_public(ipaddress.IPv4Address(int(address) >> shift & 0xFFFFFFFF))
    if any(address in network for network in REFUSED_NETWORKS if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def parse_literal(host: str) -> IPAddress | None:
    """Return the address that a host is; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
