"""Accounts from the environment, prices of the table, and host keys on a console."""

import pytest

from trainers.configs.clouds import CloudName
from workers.clouds.accounts import AwsAccount, LambdaAccount
from workers.clouds.console import find_ssh_host_keys
from workers.clouds.price_table import load_price_table, make_offer
from workers.clouds.protocol import CloudError

AWS = {
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "b",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_KEY_NAME": "k",
    "AWS_EC2_SECURITY_GROUP": "sg-1",
    "AWS_EC2_SUBNET_ID": "subnet-1",
}
LAMBDA = {"LAMBDA_API_KEY": "k", "LAMBDA_REGION": "us-east-1", "LAMBDA_SSH_KEY_PATH": "/keys/id"}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1Kq0P1uYt1sV1o0Vb3mYk9y8vF3pWq4Z5xX2cN7hTe"
BLOCK = f"-----BEGIN SSH HOST KEY KEYS-----\n{KEY} root@ip\n-----END SSH HOST KEY KEYS-----\n"


@pytest.mark.parametrize("name", AWS)
def test_a_missing_variable_of_aws_is_named(name: str) -> None:
    with pytest.raises(CloudError, match=f"{name} is not set"):
        AwsAccount.from_environment(AWS | {name: " "})


@pytest.mark.parametrize("name", LAMBDA)
def test_a_missing_variable_of_lambda_is_named(name: str) -> None:
    with pytest.raises(CloudError, match=f"{name} is not set"):
        LambdaAccount.from_environment({key: LAMBDA[key] for key in LAMBDA if key != name})


def test_what_is_optional_has_a_default() -> None:
    assert AwsAccount.from_environment(AWS | {"AWS_INSTANCE_TYPE": "g5.xlarge"}).instance_type == "g5.xlarge"
    account = LambdaAccount.from_environment(LAMBDA)
    assert (account.ssh_user, account.instance_type) == ("ubuntu", None)
    assert account.url.startswith("https://cloud.lambda.ai/")


@pytest.mark.parametrize("cloud", CloudName)
def test_each_type_of_the_table_makes_an_offer_or_has_no_price(cloud: CloudName) -> None:
    table = load_price_table(cloud)
    for specs in table.types.values():
        offer = make_offer(cloud, specs, "us-east-1", None)
        assert (offer is None) == (specs.usd_per_hour is None)
    assert table.date.year == 2026
    assert table.source


def test_a_price_of_the_table_is_neither_that_of_another_region_nor_of_a_spot_machine() -> None:
    specs = load_price_table(CloudName.aws).types["g5.xlarge"]
    assert make_offer(CloudName.aws, specs, "eu-west-1", None) is None
    assert make_offer(CloudName.aws, specs, "us-east-1", None, spot=True) is None


def test_only_the_first_block_of_host_keys_counts() -> None:
    forged = BLOCK.replace("IJ1Kq0", "IEvil0")
    assert find_ssh_host_keys(f"boot\n{BLOCK}login:\n{forged}") == (KEY,)


@pytest.mark.parametrize(
    "console", ["", KEY, BLOCK.replace("-----END", "-----end"), BLOCK.replace("ssh-ed25519", "ssh-none")]
)
def test_a_console_without_a_block_of_keys_has_none(console: str) -> None:
    assert find_ssh_host_keys(console) == ()
