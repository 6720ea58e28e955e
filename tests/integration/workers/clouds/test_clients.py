"""Clients and user data from settings and the environment of a worker."""

from pathlib import Path

import pytest

from app.settings import Settings
from trainers.configs.clouds import CloudName
from workers.clouds.clients import make_user_data, open_cloud
from workers.clouds.protocol import CloudError

AWS = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_KEY_NAME": "k",
    "AWS_EC2_SECURITY_GROUP": "sg-1",
    "AWS_EC2_SUBNET_ID": "subnet-1",
}
LAMBDA = {
    "LAMBDA_API_KEY": "secret_team_0123456789",
    "LAMBDA_REGION": "us-east-1",
    "LAMBDA_SSH_KEY_PATH": "/keys/id",
    "LAMBDA_USERNAME": "gpu",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, cloud_requirement="tunesmith[trainer]==1.2")


@pytest.mark.parametrize("cloud", CloudName)
def test_a_cloud_is_opened_with_its_variables_and_without_a_request(
    settings: Settings, cloud: CloudName
) -> None:
    assert open_cloud(cloud, settings, AWS | LAMBDA).name is cloud
    with pytest.raises(CloudError, match="not set on this worker"):
        open_cloud(cloud, settings, {})


def test_no_cloud_is_opened_while_a_host_would_have_nothing_to_install(tmp_path: Path) -> None:
    with pytest.raises(CloudError, match="TUNESMITH_CLOUD_REQUIREMENT"):
        open_cloud(CloudName.aws, Settings(data_dir=tmp_path), AWS)


@pytest.mark.parametrize("cloud", CloudName)
def test_user_data_contain_the_hosts_key_and_none_of_an_account(settings: Settings, cloud: CloudName) -> None:
    script = make_user_data(
        settings,
        AWS | LAMBDA,
        cloud=cloud,
        host_id="host_1",
        join_key="ts_0123456789abcdef",
        spot=True,
        tunnel=None,
        api_port=18000,
    )
    assert "JOIN_KEY=ts_0123456789abcdef\n" in script
    assert f"SSH_USER={'gpu' if cloud is CloudName.lambda_cloud else 'ubuntu'}\n" in script
    assert f"SPOT={int(cloud is CloudName.aws)}\n" in script
    for secret in ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI", "secret_team", "/keys/id"):
        assert secret not in script
