"""A webhook reaches no host of the service's own network (server-side request forgery).

Attacks: addresses of private and reserved networks in every notation; names that resolve to them, at once or
later (DNS rebinding); redirects; proxies from the environment; schemes, ports and credentials in URLs;
receivers that never end. Method: `getaddrinfo` is replaced, and a receiver on 127.0.0.1 must get nothing.
"""

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.http.errors import UnprocessableContent
from app.settings import Settings, get_settings
from app.webhooks import destination
from app.webhooks.destination import AllowedHosts, check_url, is_public
from app.webhooks.transport import post
from tests.security.regression import Regression, accept, ignore
from tests.webhook_receiver import WebhookReceiver, receive_webhooks

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.5",
    "192.88.99.1",
    "168.63.129.16",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:10.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001::1",
    "2001:db8::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
# Each is 127.0.0.1 or 10.0.0.1 for some parser of URLs, or hides what it connects to.
URLS = [
    "https://127.0.0.1/",
    "https://127.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0177.0.0.1/",
    "https://①②⑦.⓪.⓪.①/",
    "https://127。0。0。1/",
    "https://%31%32%37.0.0.1/",
    "https://127.0.0.1./",
    "https://[::ffff:7f00:1]/",
    "https://[0:0:0:0:0:ffff:10.0.0.1]/",
    "https://user:password@example.com/",
    "https://example.com@127.0.0.1/",
    "https://127.0.0.1\\@example.com/",
    "https://example.com#@127.0.0.1/",
    "http://example.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "https://example.com:25/",
    "https://example.com:22/",
    "https://example.com:0/",
    "https://[::1%25lo]/",
]
# How long a receiver sends that never ends, if its sender waits.
DRIP_SECONDS = 6.0
NOTHING = AllowedHosts(frozenset(), ())


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with receive_webhooks() as receiver:
        yield receiver


def send(url: str, allowed: AllowedHosts = NOTHING, seconds: float = 60.0) -> str | None:
    return post(url, {}, b"{}", allowed, seconds).error


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let names resolve to these addresses, one answer after the other; return the names that were asked."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def answer(host: str, port: int, *args: Any, **options: Any) -> Any:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            addresses = answers[min(len(asked), len(answers) - 1)]
            asked.append(host)
            return [found for address in addresses for found in real(address, port, *args, **options)]
        return real(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


@pytest.mark.parametrize("address", PRIVATE)
def test_no_address_of_a_private_or_reserved_network_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_url_that_hides_its_host_or_names_a_private_one_is_refused(client: TestClient) -> None:
    for url in URLS:
        body = {"name": "x", "url": url, "event_types": ["job.failed"]}
        refused = client.post("/api/v1/webhooks", json=body)
        assert refused.status_code == 422, url
        assert refused.json()["error"]["fields"][0]["field"] == "url"


def test_a_name_that_resolves_to_a_private_address_gets_nothing(
    receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for addresses in (["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"]):
        with monkeypatch.context() as patch:
            resolve_to(patch, addresses)
            error = send(receiver.url.replace("127.0.0.1", "evil.example"))
        assert error is not None and "private or reserved" in error
        # The message must not help to map the network.
        assert not any(address in error for address in addresses)
    assert receiver.received == []


def test_a_name_is_resolved_once_and_the_checked_address_is_used(
    receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebinding: the first answer is allowed, and each later one is private."""
    allowed = AllowedHosts(frozenset(), (ipaddress.ip_network("127.0.0.2/32"),))
    asked = resolve_to(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])
    error = send(receiver.url.replace("127.0.0.1", "rebinding.example"), allowed)
    assert asked == ["rebinding.example"]
    # The receiver listens on 127.0.0.1 only.
    assert (error is not None, receiver.received) == (True, [])


def test_redirects_are_not_followed(receiver: WebhookReceiver) -> None:
    allowed = AllowedHosts(frozenset(), (ipaddress.ip_network("127.0.0.1/32"),))
    with receive_webhooks() as redirecting:
        for status in (301, 302, 303, 307, 308):
            redirecting.statuses, redirecting.headers = [status], {"Location": receiver.url}
            error = send(redirecting.url, allowed)
            assert error is not None and "redirects are not followed" in error
    assert receiver.received == []


def test_proxies_of_the_environment_are_ignored(
    receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, receiver.url)
    with receive_webhooks() as direct:
        allowed = AllowedHosts(frozenset(), (ipaddress.ip_network("127.0.0.0/8"),))
        assert send(direct.url, allowed) is None
        assert (len(direct.received), receiver.received) == (1, [])


@pytest.mark.parametrize("stage", ["silent", "head", "body"])
def test_a_receiver_that_never_ends_costs_no_more_than_the_timeout(stage: str) -> None:
    allowed = AllowedHosts(frozenset(), (ipaddress.ip_network("127.0.0.1/32"),))
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_drip, args=(listener, stage, ended))
        thread.start()
        started = time.monotonic()
        error = send(f"http://127.0.0.1:{listener.getsockname()[1]}/", allowed, 1.0)
        seconds = time.monotonic() - started
        ended.set()
        thread.join()
    # The status is complete in the last case, and the rest of that response does not matter.
    assert error == (None if stage == "body" else "The receiver did not respond within 1 s.")
    assert seconds < DRIP_SECONDS


def test_a_name_with_many_addresses_that_do_not_accept_costs_little_more_than_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allowed = AllowedHosts(frozenset(), (ipaddress.ip_network("127.0.0.0/8"),))
    resolve_to(monkeypatch, [f"127.0.1.{number}" for number in range(1, 11)])
    with socket.create_server(("0.0.0.0", 0), backlog=0) as listener, contextlib.ExitStack() as waiting:
        port = listener.getsockname()[1]
        for _ in range(4):
            # Once nobody accepts them, the kernel leaves further connections without a response.
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        started = time.monotonic()
        error = send(f"http://slow.example:{port}/", allowed, 0.5)
    assert error == "The receiver did not respond within 0.5 s."
    # One after the other, the ten addresses would take 5 s.
    assert time.monotonic() - started < 4.5


def _drip(listener: socket.socket, stage: str, ended: threading.Event) -> None:
    """Accept one connection, and send a byte now and then, each before a timeout between two reads."""
    connection, _ = listener.accept()
    with connection:
        connection.sendall(
            {"silent": b"", "head": b"HTTP/1.1 200 OK\r\n", "body": b"HTTP/1.1 200 OK\r\n\r\n"}[stage]
        )
        for _ in range(round(DRIP_SECONDS / 0.1)):
            if ended.wait(0.1):
                return
            try:
                connection.sendall({"silent": b"", "head": b"x: y\r\n", "body": b"x"}[stage])
            except OSError:
                return


def test_a_response_without_end_is_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = AllowedHosts(frozenset(), (ipaddress.ip_network("127.0.0.1/32"),))
    sent: list[int] = []

    def flood(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(120)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            try:
                while len(sent) < 1000:
                    connection.sendall(b"x" * 65536)
                    sent.append(1)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=flood, args=(listener,))
        thread.start()
        assert send(f"http://127.0.0.1:{listener.getsockname()[1]}/", allowed) is None
        thread.join()
    assert len(sent) < 1000


def test_an_allowed_network_allows_no_other_and_an_allowed_name_no_other_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_WEBHOOK_ALLOWED_HOSTS", '["10.1.0.0/16", "hooks.internal"]')
    get_settings.cache_clear()
    for url in ("http://10.1.2.3/", "http://hooks.internal/", "https://10.1.2.3:80/"):
        assert check_url(url, get_settings())
    for url in ("http://10.2.0.1/", "http://hooks.internal.evil.example/", "https://10.2.0.1/"):
        with pytest.raises(UnprocessableContent):
            check_url(url, get_settings())
    allowed = AllowedHosts.from_settings(get_settings())
    resolve_to(monkeypatch, ["10.2.0.1"])
    assert destination.resolve("hooks.internal", 80, allowed) == ["10.2.0.1"]
    with pytest.raises(destination.DestinationRefused):
        destination.resolve("evil.example", 80, allowed)


REGRESSIONS = [
    Regression(
        "the address is not checked",
        "app.webhooks.destination:is_public",
        accept,
        "test_a_name_that_resolves_to_a_private_address_gets_nothing",
    ),
    Regression(
        "addresses of the services of clouds are not refused",
        "app.webhooks.destination:REFUSED_NETWORKS",
        (),
        "test_no_address_of_a_private_or_reserved_network_is_public",
    ),
    Regression(
        "the connection resolves the name again",
        "app.webhooks.transport:resolve",
        lambda host, port, allowed: [host] if destination.resolve(host, port, allowed) else [],
        "test_a_name_is_resolved_once_and_the_checked_address_is_used",
    ),
    Regression(
        "the form of a URL is not checked",
        "app.webhooks.service:check_url",
        lambda url, settings: url,
        "test_a_url_that_hides_its_host_or_names_a_private_one_is_refused",
    ),
    Regression(
        "the timeout limits each read alone",
        "app.webhooks.transport:GuardedBackend._end",
        ignore,
        "test_a_receiver_that_never_ends_costs_no_more_than_the_timeout",
    ),
    Regression(
        "the response is read to its end",
        "app.webhooks.transport:_discard",
        lambda parts: [None for _ in parts],
        "test_a_response_without_end_is_read_in_part",
    ),
]
