"""Machines at AWS: what is asked for, what is read, and what they cost.

Goal: a machine ends with its shutdown, is reached by a verified key, and has a price with its date.
"""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.clouds.aws_fault_proxy import CONSOLE, HOST_KEY, AwsFaultProxy, make_product
from tests.clouds.faults import Fault
from trainers.configs.clouds import PriceSource
from workers.clouds.accounts import AwsAccount
from workers.clouds.aws import AwsCloud
from workers.clouds.protocol import CloudError, CloudErrorKind, LaunchOrder, MachineState


def make_order(host_id: str, spot: bool = False) -> LaunchOrder:
    return LaunchOrder("team", host_id, 2, "g5.xlarge", "us-east-1", "#!/bin/sh\n", spot=spot)


def test_a_machine_terminates_when_it_shuts_itself_down(aws: AwsCloud, aws_proxy: AwsFaultProxy) -> None:
    machine_id = aws.launch(make_order("host_off"))
    aws_proxy.shut_down(machine_id)
    machine = aws.describe(machine_id)
    assert machine is not None
    assert machine.state is MachineState.terminated
    assert machine.state.is_gone


def test_a_launch_asks_for_tokens_of_metadata_and_an_encrypted_disk_that_goes_with_the_machine(
    aws: AwsCloud, aws_proxy: AwsFaultProxy, aws_account: AwsAccount
) -> None:
    aws.terminate(aws.launch(make_order("host_form")))
    form = aws_proxy.launched[-1]
    assert form["MetadataOptions.HttpTokens"] == "required"
    assert form["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert (form["BlockDeviceMapping.1.Ebs.DeleteOnTermination"], form["MaxCount"]) == ("true", "1")
    assert form["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
    assert form["SubnetId"] == aws_account.subnet_id
    assert "InstanceMarketOptions.MarketType" not in form


def test_the_keys_of_the_account_are_not_in_a_launch(
    aws: AwsCloud, aws_proxy: AwsFaultProxy, aws_account: AwsAccount
) -> None:
    aws.terminate(aws.launch(make_order("host_keys")))
    assert aws_account.secret_access_key not in str(aws_proxy.launched[-1])
    assert aws_account.access_key_id not in str(aws_proxy.launched[-1])
    assert aws_account.secret_access_key not in repr(aws_account)


def test_a_security_group_may_be_given_by_its_name(
    aws: AwsCloud, aws_proxy: AwsFaultProxy, aws_account: AwsAccount
) -> None:
    by_name = AwsCloud(replace(aws_account, security_group="gpu-hosts"))
    by_name.terminate(by_name.launch(make_order("host_group")))
    assert aws_proxy.launched[-1]["SecurityGroupId.1"] == aws_account.security_group
    with pytest.raises(CloudError, match="has no security group nobody"):
        AwsCloud(replace(aws_account, security_group="nobody")).launch(make_order("host_nobody"))


def test_the_ssh_host_key_is_read_from_the_console(
    aws: AwsCloud, aws_proxy: AwsFaultProxy, aws_account: AwsAccount
) -> None:
    machine_id = aws.launch(make_order("host_ssh"))
    aws_proxy.plan.add("GetConsoleOutput", Fault.invalid)
    first = aws.describe(machine_id)
    aws_proxy.consoles[machine_id] = CONSOLE
    second = aws.describe(machine_id)
    assert first is not None
    assert second is not None
    assert (first.ssh_host_keys, second.ssh_host_keys) == ((), (HOST_KEY,))
    (listed,) = [machine for machine in AwsCloud(aws_account).list_tagged("team") if machine.id == machine_id]
    assert listed.ssh_host_keys == (HOST_KEY,)
    assert second.address is not None
    assert second.launched_at is not None
    assert second.launched_at <= datetime.now(UTC)
    aws.terminate(machine_id)


def test_a_spot_machine_shows_its_notice_and_its_end(aws: AwsCloud, aws_proxy: AwsFaultProxy) -> None:
    machine_id = aws.launch(make_order("host_spot", spot=True))
    running = aws.describe(machine_id)
    aws_proxy.announce_interruption(machine_id)
    (noticed,) = [machine for machine in aws.list_tagged("team") if machine.id == machine_id]
    aws_proxy.take_back(machine_id)
    ended = aws.describe(machine_id)
    assert running is not None
    assert ended is not None
    assert (running.spot, running.interruption_notice) == (True, None)
    assert noticed.interruption_notice is not None
    assert noticed.interruption_notice.startswith("marked-for-termination")
    assert ended.state is MachineState.terminated
    assert "no-capacity" in str(ended.interruption_notice)


def test_a_token_that_was_used_for_another_request_is_an_unknown_outcome(
    aws: AwsCloud, aws_proxy: AwsFaultProxy
) -> None:
    order = make_order("host_token")
    machine_id = aws.launch(order)
    with pytest.raises(CloudError, match="IdempotentParameterMismatch") as raised:
        aws.launch(replace(order, user_data="#!/bin/sh\n# another key\n"))
    assert raised.value.kind is CloudErrorKind.unreachable
    aws.terminate(machine_id)


def test_another_region_than_that_of_the_subnet_is_refused(aws: AwsCloud) -> None:
    order = replace(make_order("host_region"), region="eu-west-1")
    with pytest.raises(CloudError, match="the keys are for us-east-1"):
        aws.launch(order)


def test_prices_come_from_the_price_list_and_else_from_the_dated_table(
    aws: AwsCloud, aws_proxy: AwsFaultProxy, aws_account: AwsAccount
) -> None:
    aws_proxy.price_list = [make_product("g5.xlarge", 1.25), make_product("g5.2xlarge", 0.0)]
    offers = {offer.type: offer for offer in AwsCloud(aws_account).list_offers() if not offer.spot}
    aws_proxy.price_list = None
    read, listed = offers["g5.xlarge"], offers["g5.2xlarge"]
    assert (read.usd_per_hour, read.price_source, read.price_date.year) == (1.25, PriceSource.cloud, 2026)
    assert (listed.usd_per_hour, listed.price_source) == (1.212, PriceSource.table)
    assert listed.price_date == datetime(2026, 7, 20, tzinfo=UTC)
    assert (read.is_default, listed.is_default, read.gpu_name) == (True, False, "A10G")


def test_without_the_price_list_another_region_has_only_prices_that_are_set(
    aws_account: AwsAccount, aws: AwsCloud
) -> None:
    elsewhere = replace(aws_account, region="eu-west-1")
    assert [offer for offer in AwsCloud(elsewhere).list_offers() if not offer.spot] == []
    given = AwsCloud(elsewhere, prices={"g5.xlarge": 1.4}).list_offers()
    (offer,) = [offer for offer in given if not offer.spot]
    assert (offer.type, offer.usd_per_hour, offer.price_source) == ("g5.xlarge", 1.4, PriceSource.setting)


def test_spot_prices_are_the_newest_of_the_most_expensive_zone(aws: AwsCloud) -> None:
    spot = [offer for offer in aws.list_offers() if offer.spot]
    assert {offer.price_source for offer in spot} == {PriceSource.cloud}
    assert "g5.xlarge" in {offer.type for offer in spot}
    assert [offer.usd_per_hour for offer in spot] == sorted(offer.usd_per_hour for offer in spot)


@pytest.mark.parametrize("action", ["DescribeSpotPriceHistory", "GetProducts"])
def test_offers_survive_a_permission_that_is_missing(
    aws: AwsCloud, aws_proxy: AwsFaultProxy, aws_account: AwsAccount, action: str
) -> None:
    aws_proxy.plan.add(action, Fault.unauthorized)
    assert "g5.xlarge" in {offer.type for offer in AwsCloud(aws_account).list_offers()}
