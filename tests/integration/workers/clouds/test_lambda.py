"""Machines at Lambda: keys, names, tags, limits and offers.

Goal: without an idempotency token a machine is never launched twice, and the key goes to Lambda alone.
"""

import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clouds.faults import Fault
from tests.clouds.http_stand_in import HttpStandIn
from tests.clouds.lambda_stand_in import API_KEY, TYPES, LambdaStandIn
from trainers.configs.clouds import PriceSource
from workers.clouds.accounts import LambdaAccount
from workers.clouds.lambda_api import LambdaApi
from workers.clouds.lambda_cloud import LambdaCloud
from workers.clouds.protocol import CloudError, CloudErrorKind, LaunchOrder, MachineState

OpenLambda = Callable[[LambdaAccount], LambdaCloud]
ORDER = LaunchOrder("team", "host_1", 3, "gpu_1x_a10", "us-east-1", "#!/bin/sh\n")


def test_a_machine_boots_gets_its_address_late_and_ends(
    lambda_cloud: LambdaCloud, lambda_stand_in: LambdaStandIn
) -> None:
    machine_id = lambda_cloud.launch(ORDER)
    lambda_stand_in.boot(machine_id, address=None)
    early = lambda_cloud.describe(machine_id)
    lambda_stand_in.boot(machine_id)
    late = lambda_cloud.describe(machine_id)
    lambda_cloud.terminate(machine_id)
    assert early is not None
    assert late is not None
    assert (early.state, early.address) == (MachineState.running, None)
    assert (late.address, late.host_id, late.epoch, late.ssh_user) == ("203.0.113.7", "host_1", 3, "ubuntu")
    assert (late.launched_at, late.ssh_host_keys) == (None, ())
    assert lambda_cloud.describe(machine_id) is None


@pytest.mark.parametrize("status", ["booting", "active", "unhealthy", "terminating", "preempted", "resizing"])
def test_a_machine_in_any_state_that_may_be_billed_is_listed(
    lambda_cloud: LambdaCloud, lambda_stand_in: LambdaStandIn, status: str
) -> None:
    machine_id = lambda_cloud.launch(ORDER)
    lambda_stand_in.instances[machine_id]["status"] = status
    (machine,) = lambda_cloud.list_tagged("team")
    assert not machine.state.is_gone
    assert (machine.interruption_notice is not None) == (status == "preempted")


def test_a_machine_without_tags_is_found_by_its_name(
    lambda_cloud: LambdaCloud, lambda_stand_in: LambdaStandIn
) -> None:
    machine_id = lambda_cloud.launch(ORDER)
    lambda_stand_in.has_tags = False
    (machine,) = lambda_cloud.list_tagged("team")
    assert (machine.id, machine.host_id, machine.epoch) == (machine_id, "host_1", 3)
    assert lambda_cloud.list_tagged("tea") == []
    assert lambda_cloud.launch(ORDER) == machine_id
    assert len(lambda_stand_in.launches) == 1


def test_the_machines_of_others_in_the_account_are_ignored(
    lambda_cloud: LambdaCloud, lambda_stand_in: LambdaStandIn
) -> None:
    machine_id = lambda_cloud.launch(ORDER)
    lambda_stand_in.instances[machine_id] |= {"name": "notebook of a colleague", "tags": []}
    assert lambda_cloud.list_tagged("team") == []


def test_a_key_that_is_registered_already_is_used(
    lambda_account: LambdaAccount, lambda_cloud: LambdaCloud, lambda_stand_in: LambdaStandIn
) -> None:
    public_key = lambda_account.ssh_key_path.with_name("id.pub").read_text().rsplit(" ", 1)[0]
    lambda_stand_in.keys.append(
        {"id": "0" * 32, "name": "laptop", "public_key": f"{public_key} another comment"}
    )
    lambda_cloud.launch(ORDER)
    assert lambda_stand_in.launches[0]["ssh_key_names"] == ["laptop"]
    assert len(lambda_stand_in.keys) == 1


def test_a_key_whose_registration_got_no_response_is_used(
    lambda_cloud: LambdaCloud, lambda_stand_in: LambdaStandIn
) -> None:
    lambda_stand_in.plan.add("POST /ssh-keys", Fault.lost_response)
    with pytest.raises(CloudError):
        lambda_cloud.launch(ORDER)
    lambda_cloud.launch(ORDER)
    assert [key["name"][:10] for key in lambda_stand_in.keys] == ["tunesmith-"]


def test_the_public_key_is_read_from_the_private_one(
    lambda_account: LambdaAccount, lambda_stand_in: LambdaStandIn, open_lambda: OpenLambda, tmp_path: Path
) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")]
    subprocess.run(command, check=True)
    public_key = (tmp_path / "key.pub").read_text()
    (tmp_path / "key.pub").unlink()
    account = replace(lambda_account, ssh_key_path=tmp_path / "key")
    open_lambda(account).launch(ORDER)
    assert lambda_stand_in.keys[0]["public_key"].split()[:2] == public_key.split()[:2]


def test_a_key_that_is_not_there_is_an_error_of_the_account(
    lambda_account: LambdaAccount, open_lambda: OpenLambda
) -> None:
    account = replace(lambda_account, ssh_key_path=Path("/nonexistent/id"))
    with pytest.raises(CloudError, match="LAMBDA_SSH_KEY_PATH") as raised:
        open_lambda(account).launch(ORDER)
    assert raised.value.kind is CloudErrorKind.unauthorized


def test_requests_keep_lambdas_limits_by_the_clock(lambda_account: LambdaAccount) -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    with LambdaStandIn(1.0, 12.0, clock=lambda: now[0]) as stand_in:
        account = replace(lambda_account, url=stand_in.url)
        with closing(LambdaApi(account, clock=lambda: now[0], sleep=sleep)) as api:
            cloud = LambdaCloud(account, api=api)
            cloud.launch(ORDER)
            with pytest.raises(CloudError) as raised:
                cloud.launch(replace(ORDER, epoch=4))
            assert raised.value.kind is CloudErrorKind.rate_limited
            assert raised.value.retry_after_seconds == 11.0
            now[0] += 11.0
            cloud.launch(replace(ORDER, epoch=4))
    assert set(slept) == {1.0}


def test_offers_have_lambdas_prices_and_say_where_capacity_is(lambda_cloud: LambdaCloud) -> None:
    offers = {offer.type: offer for offer in lambda_cloud.list_offers()}
    assert set(offers) == {"gpu_1x_a10", "gpu_8x_h100_sxm5"}
    small, large = offers["gpu_1x_a10"], offers["gpu_8x_h100_sxm5"]
    assert (small.usd_per_hour, small.has_capacity, small.is_default) == (1.29, True, True)
    assert (small.region, small.is_home) == ("us-east-1", True)
    assert (large.usd_per_hour, large.has_capacity, large.gpu_count) == (31.92, False, 8)
    assert {small.price_source, large.price_source} == {PriceSource.cloud}


def test_a_type_of_the_price_zero_is_not_offered_because_no_cap_would_end_it(
    lambda_cloud: LambdaCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cents, *rest = TYPES["gpu_1x_a10"]
    monkeypatch.setitem(TYPES, "gpu_1x_a10", (0 * cents, *rest))
    assert {offer.type for offer in lambda_cloud.list_offers()} == {"gpu_8x_h100_sxm5"}


@pytest.mark.parametrize("url", ["http://cloud.lambda.ai/api/v1", "ftp://x", "https://a:b@x/api", "x"])
def test_the_key_is_not_sent_without_tls(lambda_account: LambdaAccount, url: str) -> None:
    with pytest.raises(CloudError, match="LAMBDA_ENDPOINT_URL"):
        replace(lambda_account, url=url)


class Redirecting(HttpStandIn):
    """A server that sends its callers elsewhere, and records the keys that arrive there."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        super().__init__()

    def handle(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        self.paths.append(path)
        return 307, {"location": f"{self.url}/elsewhere"}, b""


def test_the_key_does_not_follow_a_redirect(lambda_account: LambdaAccount, open_lambda: OpenLambda) -> None:
    with Redirecting() as server:
        account = replace(lambda_account, url=f"{server.url}/api/v1")
        with pytest.raises(CloudError, match="status 307"):
            open_lambda(account).list_tagged("team")
    assert server.paths == ["/api/v1/instances"]


def test_the_key_is_not_part_of_what_is_shown(lambda_account: LambdaAccount) -> None:
    assert API_KEY not in repr(lambda_account)


@pytest.mark.parametrize("machine_id", ["../instances", "a/b", "a?b", "", "a\nb"])
def test_an_id_cannot_change_the_path(lambda_cloud: LambdaCloud, machine_id: str) -> None:
    with pytest.raises(CloudError, match="is not the id of a machine"):
        lambda_cloud.describe(machine_id)
