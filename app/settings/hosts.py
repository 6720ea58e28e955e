"""Hosts that are launched in clouds."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings


class CloudHostSettings(BaseSettings):
    """Hosts that are launched in clouds, by a worker that holds the keys of the cloud."""

    max_hosts: int = Field(
        8, ge=0, le=1000, description="Maximum number of cloud hosts that exist at once; 0 allows none."
    )
    host_sweep_seconds: float = Field(
        15,
        gt=0,
        le=60,
        description="Seconds between two comparisons of a cloud's machines with the rows of hosts. The spend "
        "of a host may exceed its cap by the price of this time.",
    )
    host_launch_seconds: float = Field(
        900, gt=0, description="Seconds for which a host waits for capacity of the cloud before it fails."
    )
    host_boot_seconds: float = Field(
        1800,
        gt=0,
        description="Seconds from a launch until the host's worker must have announced a GPU that works; "
        "then the host is terminated. Machines with eight GPUs take up to 15 minutes.",
    )
    host_idle_seconds: float = Field(
        900, ge=60, description="Seconds without a run or a deployment after which a host is terminated."
    )
    host_lost_seconds: float = Field(
        300, gt=0, description="Seconds without a sign of its worker after which a host is terminated."
    )
    host_stop_seconds: float = Field(
        120, ge=0, description="Seconds for which the worker of a host may save its runs before the end."
    )
    host_overdue_seconds: float = Field(
        300,
        gt=0,
        description="Seconds after which a termination that does not succeed is reported as overdue. It is "
        "tried again until it does.",
    )
    other_installations: list[str] = Field(
        [],
        max_length=100,
        description="Ids of other installations of Tunesmith in the same cloud accounts, as JSON. Machines "
        "of others are reported, since nothing ends them if their database was lost.",
    )
    host_api_url: str = Field(
        "",
        max_length=500,
        description="Address at which the worker with the keys of clouds reaches the API, for the tunnels of "
        "launched hosts; empty means this machine's loopback and TUNESMITH_PORT.",
    )
    host_renewal_file: Annotated[Path | None, BeforeValidator(lambda value: value or None)] = Field(
        None,
        description="On a launched host: the file that its worker creates with each heartbeat while the host "
        "is wanted. The timer of the machine removes it, and shuts the machine down when it stays away.",
    )
    host_id: str = Field(
        "",
        max_length=100,
        pattern=r"^[a-z0-9_]*$",
        description="On a launched host: the id of its row, set when the host joins.",
    )
