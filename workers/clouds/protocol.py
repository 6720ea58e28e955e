"""The calls that the service makes to a cloud, and the types and errors that all clouds share.

A caller records the host and its epoch before `launch`. A launch that raises `unreachable` may have created a
machine: `list_tagged` finds it, and only a caller that has listed and found none may launch again.
"""

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from trainers.configs.clouds import CloudName, Offer
from trainers.runtime.error_codes import ErrorCode

TAG_INSTALLATION, TAG_HOST, TAG_EPOCH = "tunesmith-installation", "tunesmith-host", "tunesmith-epoch"
# Lambda accepts names of 64 characters.
MAX_NAME_CHARACTERS = 64
MAX_EPOCH = 9999
# How long a call takes at most: four requests to a cloud that does not respond; `list_offers` has more.
MAX_CALL_SECONDS = 60.0
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class CloudErrorKind(StrEnum):
    """What a caller does after the failure of a call."""

    no_capacity = "no_capacity"  # The cloud has no such machine now: later, or another type or region.
    quota_exceeded = "quota_exceeded"  # The account may not have more: a person asks the cloud for it.
    rate_limited = "rate_limited"  # Nothing was done: again after `retry_after_seconds`.
    invalid_request = "invalid_request"  # The cloud refuses the request: never again unchanged.
    unauthorized = "unauthorized"  # The keys are missing, wrong or lack a permission.
    unreachable = "unreachable"  # No response, or a fault of the cloud: whether it was done is unknown.


HINTS = {
    CloudErrorKind.no_capacity: "The request is repeated. Another type or region may have capacity: GET "
    "/api/v1/hosts/offers.",
    CloudErrorKind.quota_exceeded: "Ask the cloud for a higher quota in its console, terminate other "
    "machines of the account, or choose another type or region: GET /api/v1/hosts/offers.",
    CloudErrorKind.unauthorized: "Check the variables of the cloud on the worker that holds its keys, "
    "whether the keys are still valid, and their permissions (docs/guides/cloud-hosts.md); then restart that "
    "worker.",
    CloudErrorKind.invalid_request: "Check the variables of the cloud on the worker that holds its keys, "
    "such as the SSH key, the network and the image.",
}


class CloudError(Exception):
    """A call to a cloud has failed."""

    code = ErrorCode.host_unavailable

    def __init__(self, kind: CloudErrorKind, message: str, retry_after_seconds: float | None = None) -> None:
        """Create an error; the message is safe to store and show."""
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = HINTS.get(kind)
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_outcome_unknown(self) -> bool:
        """Whether the call may have had its effect."""
        return self.kind is CloudErrorKind.unreachable

    def as_dict(self) -> dict[str, str | None]:
        """Return what a row keeps of the error."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class MachineState(StrEnum):
    """State of a machine, as its cloud reports it."""

    booting = "booting"
    running = "running"  # The cloud calls it running; CUDA may still be missing.
    unhealthy = "unhealthy"
    stopped = "stopped"  # Its disk is billed; the service never stops a machine, but a person may.
    terminating = "terminating"
    terminated = "terminated"
    unknown = "unknown"  # A state that this client does not know: assumed to be billed.

    @property
    def is_gone(self) -> bool:
        """Whether the machine is certain to cost nothing more."""
        return self is MachineState.terminated


@dataclass(frozen=True)
class LaunchOrder:
    """A machine to launch. No two machines ever have the same host and epoch."""

    installation: str
    host_id: str
    epoch: int
    type: str
    region: str
    user_data: str = field(repr=False)
    spot: bool = False

    def __post_init__(self) -> None:
        """Check what becomes a part of names and tags; raises ValueError."""
        for text in (self.installation, self.host_id):
            if not _ID.fullmatch(text):
                raise ValueError(f"{text!r} cannot be part of a machine's name: use a-z, 0-9, _ and -.")
        if not 0 <= self.epoch <= MAX_EPOCH:
            raise ValueError(f"epoch is {self.epoch}; it is 0 to {MAX_EPOCH}.")

    @property
    def name(self) -> str:
        """The machine's name, at most 64 characters: `tunesmith-<installation>-<host>-<epoch>`.

        An installation that would make it too long is replaced by a hash of it; tags carry all of it.
        """
        return machine_name(self.installation, self.host_id, self.epoch)

    @property
    def tags(self) -> dict[str, str]:
        """The tags by which `list_tagged` finds the machine and its host."""
        return {TAG_INSTALLATION: self.installation, TAG_HOST: self.host_id, TAG_EPOCH: str(self.epoch)}

    @property
    def token(self) -> str:
        """The idempotency token, at most 64 characters, where the cloud takes one."""
        return hashlib.sha256(f"{self.installation}/{self.host_id}/{self.epoch}".encode()).hexdigest()


@dataclass(frozen=True)
class Machine:
    """A machine of a cloud."""

    id: str
    state: MachineState
    type: str | None = None
    region: str | None = None
    installation: str | None = None
    host_id: str | None = None
    epoch: int | None = None
    name: str | None = None
    address: str | None = None  # Appears late: None while it boots.
    ssh_user: str | None = None
    # Lines `ssh-ed25519 AAAA…`, from a channel that only the cloud can write; empty where there is none yet.
    ssh_host_keys: tuple[str, ...] = ()
    launched_at: datetime | None = None  # None where the cloud does not say.
    spot: bool = False
    interruption_notice: str | None = None  # Why the cloud takes it back, or took it.


class Cloud(Protocol):
    """A cloud. Every call raises CloudError, ends within a bounded time, and may be repeated."""

    name: CloudName
    region: str | None
    """The only region of whose machines the calls tell; None: of all."""

    def read_account(self) -> str:
        """Return a mark of the account of the keys, which no other account has."""
        ...

    def find_own_accounts(self, marks: set[str]) -> set[str]:
        """Return those of the marks that are the account's: other keys of the same account find them, too."""
        ...

    def list_offers(self) -> list[Offer]:
        """Return the types of machines with GPUs that the account may launch, cheapest first."""
        ...

    def launch(self, order: LaunchOrder) -> str:
        """Launch a machine and return its id.

        After `unreachable` the machine may exist. Where the cloud has idempotency tokens, a repetition of the
        same order returns the machine of the first.
        """
        ...

    def list_tagged(self, installation: str) -> list[Machine]:
        """Return the machines of an installation that may be billed, whatever their state."""
        ...

    def list_foreign(self, installation: str) -> list[Machine]:
        """Return the machines of all other installations of Tunesmith in the account that may be billed."""
        ...

    def describe(self, machine_id: str) -> Machine | None:
        """Return a machine, also a terminated one; None if the cloud does not know it.

        In the first minute after a launch, None says nothing: clouds show a new machine late.
        """
        ...

    def terminate(self, machine_id: str) -> None:
        """Terminate a machine; returns as well if it is gone or was never there."""
        ...


def machine_name(installation: str, host_id: str, epoch: int) -> str:
    """Return the name of a host's machine, at most 64 characters."""
    rest = f"-{host_id}-{epoch}"
    space = MAX_NAME_CHARACTERS - len("tunesmith-") - len(rest)
    if len(installation) > space:
        installation = hashlib.sha256(installation.encode()).hexdigest()[: max(space, 0)]
    return f"tunesmith-{installation}{rest}"
