"""A worker keeps a cloud only with the variables and servers that its hosts need."""

from typing import Any

import pytest

from app.settings import Settings
from trainers.configs.clouds import CloudName
from workers.cloud_hosts.configured import find_clouds
from workers.cloud_hosts.host_tunnels import list_forwards, tunnel_access

AWS = {"AWS_ACCESS_KEY_ID": "a", "AWS_EC2_SUBNET_ID": "subnet-1"}
SERVERS: dict[str, Any] = {
    "database_url": "postgresql://u:p@db.internal:6543/t",
    "broker_url": "redis://:p@127.0.0.1/0",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (AWS, [CloudName.aws]),
        ({"AWS_ACCESS_KEY_ID": "of a bucket"}, []),
        ({"LAMBDA_API_KEY": "k"}, [CloudName.lambda_cloud]),
        ({"LAMBDA_API_KEY": " "}, []),
    ],
)
def test_the_variables_decide_which_clouds_a_worker_keeps(
    environment: dict[str, str], expected: list[CloudName]
) -> None:
    assert find_clouds(Settings(**SERVERS), environment) == expected


def test_no_cloud_is_kept_with_embedded_servers_which_a_host_cannot_reach(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert find_clouds(Settings(), AWS) == []
    assert "need PostgreSQL and Redis" in caplog.text


def test_a_host_reaches_the_servers_at_the_addresses_that_the_worker_uses() -> None:
    forwards = [forward.to_arguments()[1] for forward in list_forwards(Settings(**SERVERS, port=9000))]
    assert forwards == [
        "127.0.0.1:18000:127.0.0.1:9000",
        "127.0.0.1:15432:db.internal:6543",
        "127.0.0.1:16379:127.0.0.1:6379",
    ]
    behind = list_forwards(Settings(**SERVERS, host_api_url="http://api:8000"))[0]
    assert (behind.host, behind.port) == ("api", 8000)


def test_the_key_of_the_tunnels_is_made_once_and_may_only_forward_ports(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = Settings(**SERVERS, data_dir=tmp_path_factory.mktemp("data"))
    access = tunnel_access(settings)
    assert access == tunnel_access(settings)
    assert access.authorized_line.startswith('restrict,port-forwarding,permitlisten="127.0.0.1:18000"')
    assert (settings.data_dir / "tunnels" / "tunnel_key").stat().st_mode & 0o077 == 0
