"""How machines of clouds are configured; the keys are variables of the worker that launches them."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings

from trainers.configs.clouds import MAX_USD, CloudName, MachineType

UsdPerHour = Annotated[float, Field(gt=0, le=MAX_USD)]


class CloudSettings(BaseSettings):
    """How machines of clouds are configured, for the worker that launches them."""

    cloud_requirement: str = Field(
        "",
        max_length=500,
        description="What a launched host installs, as one requirement of pip: `tunesmith[trainer]==1.2` "
        "from an index of yours, or `tunesmith[trainer] @ https://…/tunesmith-1.2-py3-none-any.whl`. Empty "
        "launches none: a name that a public index gives to anybody is not a safe default.",
    )
    aws_image: str = Field(
        "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id",
        max_length=300,
        description="Image of machines at AWS: an AMI, or the SSM parameter that contains its id. An Ubuntu "
        "with NVIDIA's driver; the default is the newest Deep Learning Base AMI.",
    )
    lambda_image_family: str = Field(
        "",
        max_length=100,
        description="Family of the image of machines at Lambda; empty is the newest Lambda Stack.",
    )
    cloud_disk_gib: int = Field(
        200,
        ge=50,
        le=16000,
        description="Disk of a machine at AWS in GiB. Lambda's types have a size of their own.",
    )
    cloud_prices: dict[CloudName, dict[MachineType, UsdPerHour]] = Field(
        {},
        description="Prices of types in US dollars per hour that replace those of the cloud and of the table "
        'in the package, as JSON: `{"aws": {"g5.xlarge": 1.2}}`.',
    )
    host_unattended_seconds: float = Field(
        1800,
        ge=300,
        le=24 * 3600,
        description="Seconds without an accepted heartbeat after which a launched machine shuts itself down. "
        "At AWS that ends its cost; at Lambda only the control plane can.",
    )
