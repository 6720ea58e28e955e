"""Every call to a cloud with every fault.

Goal: each fault becomes the kind of error on which the caller decides, and none leads to a second machine.
Method: moto's EC2 behind a fault proxy, and a stand-in for Lambda, as servers; the clients are the real ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import pytest

from tests.clouds.aws_fault_proxy import AwsFaultProxy
from tests.clouds.faults import EXPECTED, Fault, FaultPlan
from tests.clouds.lambda_stand_in import LambdaStandIn
from trainers.configs.clouds import CloudName
from workers.clouds.aws import AwsCloud
from workers.clouds.lambda_cloud import LambdaCloud
from workers.clouds.protocol import Cloud, CloudError, LaunchOrder

NUMBERS = count(1)
UNKNOWN = {CloudName.aws: "i-0123456789abcdef0", CloudName.lambda_cloud: "f" * 32}
ACTIONS = {
    CloudName.aws: {
        "list_offers": "DescribeInstanceTypeOfferings",
        "launch": "RunInstances",
        "list_tagged": "DescribeInstances",
        "list_foreign": "DescribeInstances",
        "describe": "DescribeInstances",
        "terminate": "TerminateInstances",
    },
    CloudName.lambda_cloud: {
        "list_offers": "GET /instance-types",
        "launch": "POST /instance-operations/launch",
        "list_tagged": "GET /instances",
        "list_foreign": "GET /instances",
        "describe": "GET /instances/{id}",
        "terminate": "POST /instance-operations/terminate",
    },
}


@dataclass
class Account:
    """A cloud with its stand-in."""

    cloud: Cloud
    plan: FaultPlan
    count_billed: Callable[[], int]
    type: str


@pytest.fixture(params=list(CloudName))
def account(request: pytest.FixtureRequest) -> Account:
    if request.param is CloudName.aws:
        proxy: AwsFaultProxy = request.getfixturevalue("aws_proxy")
        aws: AwsCloud = request.getfixturevalue("aws")
        proxy.plan.clear()

        def count_running() -> int:
            return sum(state != "terminated" for state in proxy.states().values())

        before = count_running()
        return Account(aws, proxy.plan, lambda: count_running() - before, "g5.xlarge")
    stand_in: LambdaStandIn = request.getfixturevalue("lambda_stand_in")
    lambda_cloud: LambdaCloud = request.getfixturevalue("lambda_cloud")
    return Account(lambda_cloud, stand_in.plan, lambda: len(stand_in.billed()), "gpu_1x_a10")


def make_order(account: Account, installation: str = "team") -> LaunchOrder:
    return LaunchOrder(
        installation, f"host_{next(NUMBERS)}", 1, account.type, "us-east-1", "#!/bin/sh\necho hi\n"
    )


def call(account: Account, name: str, machine_id: str) -> object:
    match name:
        case "list_offers":
            return account.cloud.list_offers()
        case "list_tagged":
            return account.cloud.list_tagged("team")
        case "list_foreign":
            return account.cloud.list_foreign("team")
        case "describe":
            return account.cloud.describe(machine_id)
        case "terminate":
            account.cloud.terminate(machine_id)
            return None
    raise AssertionError(name)


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("name", ["list_offers", "list_tagged", "list_foreign", "describe", "terminate"])
def test_a_fault_becomes_its_kind_of_error_and_the_repetition_succeeds(
    account: Account, name: str, fault: Fault
) -> None:
    # A machine is expensive for moto, and only `terminate` changes it.
    machine_id = (
        account.cloud.launch(make_order(account)) if name == "terminate" else UNKNOWN[account.cloud.name]
    )
    account.plan.add(ACTIONS[account.cloud.name][name], fault)
    with pytest.raises(CloudError) as raised:
        call(account, name, machine_id)
    assert raised.value.kind is EXPECTED[fault]
    call(account, name, machine_id)
    assert account.count_billed() == 0


@pytest.mark.parametrize("fault", Fault)
def test_a_repeated_launch_leads_to_one_machine(account: Account, fault: Fault) -> None:
    order = make_order(account)
    account.plan.add(ACTIONS[account.cloud.name]["launch"], fault)
    with pytest.raises(CloudError) as raised:
        account.cloud.launch(order)
    assert raised.value.kind is EXPECTED[fault]
    assert account.count_billed() == int(fault.has_effect)
    # What the keeper finds after an unknown outcome is the machine that the repetition returns.
    found = [machine.id for machine in account.cloud.list_tagged("team") if machine.host_id == order.host_id]
    machine_id = account.cloud.launch(order)
    assert found == ([machine_id] if fault.has_effect else [])
    assert account.count_billed() == 1
    account.cloud.terminate(machine_id)
    assert account.count_billed() == 0


def test_no_secret_is_in_an_error(account: Account) -> None:
    for fault in Fault:
        account.plan.add(ACTIONS[account.cloud.name]["list_tagged"], fault)
        with pytest.raises(CloudError) as raised:
            account.cloud.list_tagged("team")
        for secret in ("secret_standin", "wJalrXUtn", "ts_0123456789abcdefghij", "127.0.0.1"):
            assert secret not in raised.value.message


def test_a_machine_is_found_by_its_installation_host_and_epoch(account: Account) -> None:
    order = make_order(account, "team-a")
    machine_id = account.cloud.launch(order)
    other_id = account.cloud.launch(make_order(account, "team-b"))
    (machine,) = account.cloud.list_tagged("team-a")
    assert (machine.id, machine.host_id, machine.epoch) == (machine_id, order.host_id, 1)
    assert machine.name == order.name
    assert not machine.state.is_gone
    foreign = [machine.installation for machine in account.cloud.list_foreign("team-a")]
    assert foreign == ["team-b"]
    for id in (machine_id, other_id):
        account.cloud.terminate(id)
    assert account.cloud.list_tagged("team-a") == []


def test_the_account_is_one_of_the_marks_that_its_keys_recognize(account: Account) -> None:
    mark = account.cloud.read_account()
    assert account.cloud.find_own_accounts({mark, "another"}) == {mark}
    assert account.cloud.find_own_accounts(set()) == set()


def test_terminating_twice_or_nothing_returns(account: Account) -> None:
    machine_id = account.cloud.launch(make_order(account))
    account.cloud.terminate(machine_id)
    account.cloud.terminate(machine_id)
    account.cloud.terminate(UNKNOWN[account.cloud.name])
    assert account.cloud.describe(UNKNOWN[account.cloud.name]) is None


def test_user_data_of_any_size_that_is_too_large_is_refused_before_a_request(account: Account) -> None:
    order = make_order(account)
    large = LaunchOrder("team", order.host_id, 1, order.type, order.region, "#" * 1_000_001)
    with pytest.raises(CloudError, match="user data is larger"):
        account.cloud.launch(large)
    assert account.count_billed() == 0
