"""Requests and responses of the endpoints of hosts."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from app.runs.schemas import ErrorView
from app.tables import HostStatus, StopReason
from trainers.configs.base import MAX_SECONDS
from trainers.configs.clouds.offers import CloudName, HostSpec, Offer

CREATE_EXAMPLES: dict[str, Any] = {
    "lambda": {
        "summary": "Launch a host with one GPU, for at most 5 US dollars",
        "value": {"cloud": "lambda", "type": "gpu_1x_a10", "max_usd": 5.0},
    },
    "spot": {
        "summary": "Launch a spot host that ends after ten idle minutes",
        "value": {
            "cloud": "aws",
            "type": "g5.xlarge",
            "spot": True,
            "max_usd": 3.0,
            "idle_seconds": 600.0,
        },
    },
}
SETTLE_EXAMPLES: dict[str, Any] = {
    "same account": {
        "summary": "The keys are new, and of the account of the machine",
        "value": {"settlement": "same_account"},
    },
    "ended": {
        "summary": "The machine was terminated by hand in its account",
        "value": {"settlement": "machine_ended"},
    },
}
TAKE_OVER_EXAMPLES: dict[str, Any] = {
    "restored": {"summary": "The installation was restored from a backup", "value": {"cloud": "lambda"}},
}


class HostCreate(HostSpec):
    """A host to launch, which serves the queue `cuda`."""

    idle_seconds: float | None = Field(
        None,
        ge=60,
        le=MAX_SECONDS,
        description="Seconds without a run or a deployment after which it is terminated; null is "
        "TUNESMITH_HOST_IDLE_SECONDS.",
    )


class Settlement(StrEnum):
    """What a person has found out about a host that the keys of the cloud do not reach."""

    same_account = "same_account"
    machine_ended = "machine_ended"


class HostSettle(BaseModel):
    """A person's decision about a host out of reach."""

    model_config = ConfigDict(extra="forbid")

    settlement: Settlement = Field(
        description="`same_account`: the keys are of the account that launched the machine; a machine that "
        "they do not show has then ended. `machine_ended`: somebody has terminated the machine, or seen that "
        "it has ended."
    )


class HostTakeOver(BaseModel):
    """The statement that no other copy of this installation uses its machines."""

    model_config = ConfigDict(extra="forbid")

    cloud: CloudName = Field(description="The cloud whose machines the service may terminate again.")


class UnclaimedMachine(BaseModel):
    """A machine of Tunesmith that this service neither uses nor terminates, and that may be billed."""

    machine_id: str = Field(description="Id of the machine in the cloud.")
    name: str | None = Field(description="Name of the machine in the cloud.")
    installation_id: str | None = Field(description="The installation that launched it.")
    host_id: str | None = Field(description="The host that it was launched for.")
    state: str = Field(description="State of the machine, as the cloud reports it.")
    foreign: bool = Field(
        description="Whether another installation has launched it. Otherwise its host is newer than the "
        "database, which was restored or lost: `POST /api/v1/hosts/take-over` lets it be terminated."
    )


class HostView(BaseModel):
    """A host that was launched in a cloud."""

    id: str = Field(description="Id of the host, `host_…`.")
    cloud: CloudName = Field(description="Cloud that rents the machine out.")
    type: str = Field(description="Type of the machine in the names of the cloud.")
    region: str = Field(description="Region of the cloud.")
    spot: bool = Field(description="Whether the cloud may take the machine back.")
    gpu_name: str | None = Field(description="Model of its GPUs.")
    gpu_count: int = Field(description="Number of its GPUs.")
    status: HostStatus = Field(
        description="`launching` until the cloud has accepted it, `booting` until the machine runs, "
        "`joining` until its worker has announced a GPU that works, then `ready`. `stopping` while the "
        "worker saves, `terminating` until the cloud confirms the end, then `terminated`, or `failed` "
        "with an error."
    )
    progress: str = Field(description="What happens now, or has happened, in words.")
    usd_per_hour: float = Field(description="Price in US dollars per hour, without tax.")
    spend_usd: float = Field(description="What it has cost until now, from its price and its begun minutes.")
    max_usd: float = Field(description="What it may cost; it is terminated before.")
    idle_seconds: float = Field(description="Idle seconds after which it is terminated.")
    job_id: str | None = Field(description="The job for which alone it works; null if it serves all.")
    machine_id: str | None = Field(description="Id of the machine in the cloud, once it is known.")
    address: str | None = Field(description="Address of the machine, once it is known.")
    ssh_host_keys: list[str] = Field(description="Public host keys by which its SSH server is recognized.")
    workers: list[str] = Field(description="Ids of its workers that are alive.")
    stop_reason: StopReason | None = Field(description="Why it is terminated.")
    account: str | None = Field(
        description="Mark of the cloud account that launched it: the id of the account at AWS, and that "
        "of the SSH key at Lambda."
    )
    error: ErrorView | None = Field(
        description="Why it failed, or why the last sweep could not do what it needs; that is repeated. "
        "`host_out_of_reach`: the keys are of another account or region than its machine."
    )
    created_by: str | None = Field(description="Id of the API key that asked for it; null without keys.")
    created_at: datetime = Field(description="When it was requested.")
    launched_at: datetime | None = Field(description="From when on its machine is billed.")
    running_at: datetime | None = Field(description="When the machine ran.")
    ready_at: datetime | None = Field(description="When its worker was ready.")
    last_busy_at: datetime | None = Field(description="When it last had a run or a deployment.")
    stop_at: datetime | None = Field(description="When its end was decided.")
    overdue_at: datetime | None = Field(
        description="When its termination was reported as overdue: its machine is still billed."
    )
    ended_at: datetime | None = Field(description="When the cloud confirmed that the machine is gone.")


class CloudOffersView(BaseModel):
    """What a cloud offers."""

    cloud: CloudName = Field(description="The cloud.")
    attended: bool = Field(
        description="Whether a live worker holds the keys of the cloud. Without one nothing is launched, and "
        "nothing is terminated except by the timers of the machines."
    )
    error: str | None = Field(description="Why the last comparison with the cloud failed.")
    swept_at: datetime | None = Field(description="When its machines and the rows were last compared.")
    read_at: datetime | None = Field(description="When the offers were read.")
    account: str | None = Field(description="Mark of the account of the keys.")
    held_at: datetime | None = Field(
        description="When the database was restored from a backup: nothing is launched or terminated until "
        "`POST /api/v1/hosts/take-over`. Null if nothing is held."
    )
    unclaimed: list[UnclaimedMachine] = Field(
        description="Machines of other installations in the account, and those newer than the database."
    )
    orphans: int = Field(description="Machines of this installation without a row that were terminated.")
    offers: list[Offer] = Field(description="The types of machines, the cheapest first.")


class OffersView(BaseModel):
    """What the clouds offer whose keys a worker holds or held."""

    clouds: list[CloudOffersView] = Field(description="The clouds, by name.")
