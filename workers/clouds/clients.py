"""The clients of the clouds and the user data of their machines, from settings and the environment."""

import math
from collections.abc import Mapping

from app.scheduling.version import own_version
from app.settings import Settings
from trainers.configs.clouds import CloudName
from workers.clouds.accounts import DEFAULT_SSH_USER, AwsAccount, LambdaAccount
from workers.clouds.lambda_cloud import LambdaCloud
from workers.clouds.protocol import Cloud, CloudError, CloudErrorKind
from workers.clouds.user_data import HostSetup, TunnelAccess

# The control plane ends a host that boots too slowly; the machine itself does so if the control plane cannot.
BOOT_MARGIN_MINUTES = 15


def open_cloud(name: CloudName, settings: Settings, environment: Mapping[str, str]) -> Cloud:
    """Return the client of a cloud.

    Raises:
        CloudError: A variable is missing, the package boto3, or what a host installs.
    """
    if not settings.cloud_requirement:
        raise CloudError(
            CloudErrorKind.invalid_request,
            "TUNESMITH_CLOUD_REQUIREMENT is not set, so a launched host would have nothing to install. Set "
            f"it to this version ({own_version()}) where hosts can fetch it, such as `tunesmith[trainer] @ "
            "https://…/FILE.whl`; `pip wheel --no-deps .` in a clone builds the file",
        )
    prices = settings.cloud_prices.get(name, {})
    if name is CloudName.lambda_cloud:
        account = LambdaAccount.from_environment(environment)
        return LambdaCloud(account, settings.lambda_image_family or None, prices)
    try:
        # Few installations launch hosts, and only they need the package.
        from workers.clouds.aws import AwsCloud
    except ImportError as error:
        message = f"boto3 is not installed on this worker ({error}): install the extra `aws`."
        raise CloudError(CloudErrorKind.invalid_request, message) from error
    aws_account = AwsAccount.from_environment(environment)
    return AwsCloud(aws_account, settings.aws_image, settings.cloud_disk_gib, prices)


def find_ssh_user(name: CloudName, environment: Mapping[str, str]) -> str:
    """Return the user of a cloud's machines for SSH."""
    variable = "LAMBDA_USERNAME" if name is CloudName.lambda_cloud else ""
    return environment.get(variable, "").strip() or DEFAULT_SSH_USER


def make_user_data(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    cloud: CloudName,
    host_id: str,
    join_key: str,
    spot: bool,
    tunnel: TunnelAccess | None,
    api_port: int,
) -> str:
    """Return the user data of a host; `api_port` is where the tunnel shows the API on the machine.

    Raises:
        ValueError: A setting cannot be part of it.
    """
    setup = HostSetup(
        host_id=host_id,
        join_key=join_key,
        requirement=settings.cloud_requirement,
        url=f"http://127.0.0.1:{api_port}",
        ssh_user=find_ssh_user(cloud, environment),
        tunnel=tunnel,
        # Lambda gives no notice.
        spot=spot and cloud is CloudName.aws,
        boot_minutes=math.ceil(settings.host_boot_seconds / 60) + BOOT_MARGIN_MINUTES,
        lease_minutes=math.ceil(settings.host_unattended_seconds / 60),
    )
    return setup.render(environment)
