"""The sender of webhooks: a thread of each API process that claims what is due, and sends it in threads.

It needs no leader, since a claim has one winner. Events are written by API processes and workers alike, and
are found by polling, within about a second.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence

from app.http.errors import HttpError
from app.scheduling.incidents import Incident
from app.scheduling.periodic import repeat
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.webhooks import deliveries
from app.webhooks.deliveries import ClaimedDelivery
from app.webhooks.destination import AllowedHosts
from app.webhooks.encryption import SecretUnreadable
from app.webhooks.service import list_secrets, message_headers
from app.webhooks.transport import PostResult, post

POLL_SECONDS = 1.0
JITTER = 0.2
STOP_SECONDS = 5.0
MAX_SENDING = 8
# A receiver that is slow must not occupy the places of the others.
MAX_SENDING_PER_WEBHOOK = 2
# Of one poll, of which each webhook gets its places.
MAX_FOUND = 100

logger = logging.getLogger(__name__)


class WebhookSender:
    """The thread that sends due deliveries until it is stopped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._sending: dict[threading.Thread, str] = {}
        self._incident = Incident("recording the delivery of webhooks")
        self._thread = threading.Thread(
            target=repeat,
            args=("webhooks", self.poll, POLL_SECONDS, self._stopping),
            kwargs={"jitter": JITTER, "pause": self._pause},
            name="webhooks",
            daemon=True,
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Claim no more, and wait some seconds for the attempts in progress; the others are repeated."""
        self._stopping.set()
        self._wake.set()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in (self._thread, *self._sending_threads()):
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def poll(self) -> None:
        """Claim the deliveries that are due, as far as there is room, and start to send them."""
        with self._lock:
            counts = Counter(self._sending.values())
        room = MAX_SENDING - counts.total()
        busy = [webhook_id for webhook_id, count in counts.items() if count >= MAX_SENDING_PER_WEBHOOK]
        with read_session() as session:
            has_expired = session.scalar(deliveries.select_expired().limit(1)) is not None
            found = [*deliveries.find_due(session, busy, MAX_FOUND)] if room > 0 else []
            if len(found) == MAX_FOUND:
                # Those of one webhook that was away may be older than all others.
                seen = {webhook_id for _, webhook_id in found}
                found += deliveries.find_due(session, {*busy, *seen}, MAX_FOUND)
        if has_expired:
            with transaction() as session:
                deliveries.fail_expired(session)
        for delivery_id in _choose(found, counts, room):
            with transaction() as session:
                claimed = deliveries.claim(session, delivery_id)
            if claimed is not None:
                self._start(claimed)

    def _start(self, claimed: ClaimedDelivery) -> None:
        thread = threading.Thread(target=self._send, args=(claimed,), name="webhook", daemon=True)
        with self._lock:
            self._sending[thread] = claimed.webhook.id
        thread.start()

    def _send(self, claimed: ClaimedDelivery) -> None:
        try:
            result = attempt(self._settings, claimed)
            with transaction() as session:
                deliveries.record_attempt(session, self._settings, claimed, result)
        except Exception as error:
            # The claim ends by itself, and the attempt is repeated.
            self._incident.record(error)
        else:
            self._incident.resolve()
        finally:
            with self._lock:
                del self._sending[threading.current_thread()]
            self._wake.set()

    def _pause(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()

    def _sending_threads(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._sending)


def attempt(settings: Settings, claimed: ClaimedDelivery) -> PostResult:
    """Sign and send a claimed delivery, and return the outcome."""
    body = claimed.payload.encode()
    try:
        secrets = list_secrets(settings, claimed.webhook)
    except (SecretUnreadable, HttpError) as error:
        return PostResult(0.0, error=str(error))
    headers = message_headers(secrets, claimed.id, body)
    result = post(claimed.webhook.url, headers, body, AllowedHosts.from_settings(settings))
    logger.info(
        "webhook %s: delivery %s, attempt %d: %s",
        claimed.webhook.id,
        claimed.id,
        claimed.attempt,
        result.error or result.status_code,
    )
    return result


def _choose(found: Sequence[tuple[str, str]], counts: Counter[str], room: int) -> list[str]:
    """Return the deliveries to send now: each webhook gets a limited number of the places."""
    places = Counter(counts)
    chosen: list[str] = []
    for delivery_id, webhook_id in found:
        if len(chosen) < room and places[webhook_id] < MAX_SENDING_PER_WEBHOOK:
            places[webhook_id] += 1
            chosen.append(delivery_id)
    return chosen
