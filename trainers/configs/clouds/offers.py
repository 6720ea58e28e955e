"""Clouds, what they offer, and what a job asks of them; the API, the workers and the clients share these."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from trainers.configs.base import Config

# The names of types and regions of both clouds; `NAME=value` of a shell or a path is none.
MachineType = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
RegionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
MAX_USD = 1_000_000.0


class CloudName(StrEnum):
    """A cloud in which the service can launch hosts."""

    aws = "aws"
    # `lambda` is a keyword of Python.
    lambda_cloud = "lambda"


class PriceSource(StrEnum):
    """Where the price of an offer comes from."""

    cloud = "cloud"  # Read from the cloud's API.
    table = "table"  # From the table of list prices that is part of the package.
    setting = "setting"  # From `TUNESMITH_CLOUD_PRICES`.


class HostSpec(Config):
    """A machine of a cloud that is launched for one job, and terminated when the job ends."""

    cloud: CloudName = Field(description="Cloud that rents the machine out.")
    type: MachineType | None = Field(
        None,
        description="Type of the machine in the names of the cloud: `g5.xlarge`, `gpu_1x_a10`. Null is the "
        "one that `AWS_INSTANCE_TYPE` or `LAMBDA_INSTANCE_TYPE` names.",
    )
    region: RegionName | None = Field(
        None,
        description="Region; null is the one that `AWS_DEFAULT_REGION` or `LAMBDA_REGION` names, unless only "
        "another one has capacity.",
    )
    spot: bool = Field(
        False,
        description="Whether the cloud may take the machine back at two minutes' notice, at a lower price. "
        "Only AWS has such machines.",
    )
    max_usd: float = Field(
        gt=0, le=MAX_USD, description="US dollars that the machine may cost; then it is terminated."
    )


class Offer(Config):
    """A type of machine that can be launched in a region, with its price."""

    cloud: CloudName = Field(description="Cloud that rents the machine out.")
    type: MachineType = Field(description="Type of the machine in the names of the cloud.")
    region: RegionName = Field(description="Region of the cloud.")
    is_default: bool = Field(
        False, description="Whether `AWS_INSTANCE_TYPE` or `LAMBDA_INSTANCE_TYPE` names the type."
    )
    is_home: bool = Field(
        False, description="Whether `AWS_DEFAULT_REGION` or `LAMBDA_REGION` names the region."
    )
    spot: bool = Field(False, description="Whether the cloud may take the machine back.")
    gpu_name: str | None = Field(None, max_length=64, description="Model of the GPUs: `H100`.")
    gpu_count: int = Field(0, ge=0, le=64, description="GPUs of the machine.")
    gpu_memory_gib: float | None = Field(None, gt=0, le=4096, description="Memory of one GPU, in GiB.")
    cpu_count: int | None = Field(None, ge=1, le=4096, description="Virtual CPUs.")
    memory_gib: float | None = Field(None, gt=0, le=65536, description="Memory of the machine, in GiB.")
    usd_per_hour: float = Field(ge=0, le=MAX_USD, description="Price in US dollars per hour, without tax.")
    price_source: PriceSource = Field(description="Where the price comes from.")
    price_date: datetime = Field(description="When the price was read or published.")
    has_capacity: bool | None = Field(
        None,
        description="Whether the cloud says that it has such a machine now. A hint: a launch may still fail, "
        "and null says nothing.",
    )
