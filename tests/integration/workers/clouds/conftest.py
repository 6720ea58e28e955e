"""The stand-ins of both clouds and clients of them."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import httpx2
import pytest

from tests.clouds.aws_fault_proxy import AwsFaultProxy
from tests.clouds.lambda_stand_in import API_KEY, LambdaStandIn
from tests.services import free_port
from workers.clouds.accounts import AwsAccount, LambdaAccount
from workers.clouds.aws import AwsCloud
from workers.clouds.lambda_api import LambdaApi
from workers.clouds.lambda_cloud import LambdaCloud

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPubliclyKnownKeyOfTheTestsAAAAAAAAAAAAAAAAAAAAA laptop"


@pytest.fixture(scope="session")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a process of moto."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = tmp_path_factory.mktemp("moto") / "log.txt"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 120
            while not _responds(url):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield url
        finally:
            server.kill()


def _responds(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/moto-api/").status_code < 500
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="session")
def aws_proxy(moto_url: str) -> Iterator[AwsFaultProxy]:
    """Start a fault proxy before moto."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    ec2 = boto3.client("ec2", endpoint_url=moto_url, **keys)
    image = ec2.describe_images(Filters=[{"Name": "architecture", "Values": ["x86_64"]}])["Images"][0]
    with AwsFaultProxy(moto_url, image["ImageId"]) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def aws_account(moto_url: str) -> AwsAccount:
    """Return an account in the default network of moto."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    ec2 = boto3.client("ec2", endpoint_url=moto_url, **keys)
    ec2.create_key_pair(KeyName="control-host")
    subnet = ec2.describe_subnets()["Subnets"][0]
    group = ec2.create_security_group(
        GroupName="gpu-hosts", Description="SSH from the control host", VpcId=subnet["VpcId"]
    )
    return AwsAccount(
        access_key_id="AKIAIOSFODNN7EXAMPLE",
        secret_access_key="wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
        region="us-east-1",
        key_name="control-host",
        security_group=group["GroupId"],
        subnet_id=subnet["SubnetId"],
        instance_type="g5.xlarge",
    )


@pytest.fixture(scope="module")
def aws(aws_proxy: AwsFaultProxy, aws_account: AwsAccount) -> Iterator[AwsCloud]:
    """Return a client of AWS, which reaches the proxy, as do those that a test of the module creates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", aws_proxy.url)
        yield AwsCloud(aws_account)


@pytest.fixture
def lambda_stand_in() -> Iterator[LambdaStandIn]:
    """Start a stand-in for Lambda."""
    with LambdaStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def lambda_account(lambda_stand_in: LambdaStandIn, tmp_path: Path) -> LambdaAccount:
    """Return the account, with a key whose public half is in a file."""
    (tmp_path / "id.pub").write_text(PUBLIC_KEY)
    return LambdaAccount(
        api_key=API_KEY,
        region="us-east-1",
        ssh_key_path=tmp_path / "id",
        instance_type="gpu_1x_a10",
        url=lambda_stand_in.url,
    )


@pytest.fixture
def open_lambda() -> Iterator[Callable[[LambdaAccount], LambdaCloud]]:
    """Return a function that opens a client which waits for nothing."""
    with contextlib.ExitStack() as stack:

        def open_client(account: LambdaAccount) -> LambdaCloud:
            api = LambdaApi(account, request_seconds=0, launch_seconds=0)
            stack.callback(api.close)
            return LambdaCloud(account, api=api)

        yield open_client


@pytest.fixture
def lambda_cloud(
    lambda_account: LambdaAccount, open_lambda: Callable[[LambdaAccount], LambdaCloud]
) -> LambdaCloud:
    """Return a client of the stand-in."""
    return open_lambda(lambda_account)
