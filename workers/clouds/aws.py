"""Machines at AWS EC2, through boto3.

The permissions that the keys need, and how the machines are configured: docs/guides/cloud-hosts.md.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import boto3
from botocore.config import Config as BotoConfig

from trainers.configs.clouds import CloudName, Offer
from workers.clouds.accounts import DEFAULT_SSH_USER, AwsAccount
from workers.clouds.aws_errors import UnknownAwsMachine, translate_errors
from workers.clouds.aws_offers import AwsOffers
from workers.clouds.console import find_ssh_host_keys
from workers.clouds.protocol import (
    TAG_EPOCH,
    TAG_HOST,
    TAG_INSTALLATION,
    CloudError,
    CloudErrorKind,
    LaunchOrder,
    Machine,
    MachineState,
)

# Ubuntu 24.04 with NVIDIA's driver, without frameworks, and with Python 3.12.
# https://docs.aws.amazon.com/dlami/latest/devguide/find-dlami-id.html
DEFAULT_IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
DEFAULT_DISK_GIB = 200
# EC2's limit, before base64.
MAX_USER_DATA_BYTES = 16 * 1024
CONNECT_SECONDS, READ_SECONDS = 3, 12
# The newest image changes every few weeks.
IMAGE_SECONDS = 3600.0
# Consoles that one call reads, of machines whose host keys are not known yet.
MAX_CONSOLES = 2
# Not one of them is `terminated`: AWS forgets a terminated machine after an hour.
LISTED_STATES = ["pending", "running", "shutting-down", "stopping", "stopped"]
STATES = {
    "pending": MachineState.booting,
    "running": MachineState.running,
    "shutting-down": MachineState.terminating,
    "stopping": MachineState.stopped,
    "stopped": MachineState.stopped,
    "terminated": MachineState.terminated,
}
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-request-status.html
_INTERRUPTIONS = ("marked-for-", "instance-terminated-", "instance-stopped-")
# The end of a request whose machine was terminated by its owner.
_OWN_END = "instance-terminated-by-user"

logger = logging.getLogger(__name__)


class AwsCloud:
    """The machines of one account in one region and subnet. Threads share it."""

    name = CloudName.aws

    def __init__(
        self,
        account: AwsAccount,
        image: str = DEFAULT_IMAGE,
        disk_gib: int = DEFAULT_DISK_GIB,
        prices: dict[str, float] | None = None,
    ) -> None:
        """Create a client; `image` is an AMI, or the name of the SSM parameter that contains its id.

        `prices` in US dollars per hour replace those of AWS and of the table, by type.
        """
        self._account, self._image, self._disk_gib = account, image, disk_gib
        self.region: str | None = account.region
        # Retries are the caller's: it lists before it launches again, and its calls end within a known time.
        options = BotoConfig(
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
        )
        session = boto3.session.Session(
            aws_access_key_id=account.access_key_id,
            aws_secret_access_key=account.secret_access_key,
            region_name=account.region,
        )
        self._open: Callable[..., Any] = lambda service, **more: session.client(
            service, config=options, **more
        )
        self._ec2 = self._open("ec2")
        self._offers = AwsOffers(self._ec2, self._open, account, prices or {})
        self._host_keys: dict[str, tuple[str, ...]] = {}
        self._console_reads: Counter[str] = Counter()
        self._found_image: tuple[str, str] | None = None
        self._image_at = 0.0
        self._security_group = account.security_group
        self._account_id: str | None = None
        self._lock = threading.Lock()

    def read_account(self) -> str:
        """Return the id of the account, which every key may read; see `Cloud`."""
        if self._account_id is None:
            with translate_errors("get_caller_identity"):
                self._account_id = str(self._open("sts").get_caller_identity()["Account"])
        return self._account_id

    def find_own_accounts(self, marks: set[str]) -> set[str]:
        """Return the id of the account if it is one of the marks; see `Cloud`."""
        return marks & {self.read_account()} if marks else set()

    def list_offers(self) -> list[Offer]:
        """Return the types in the table that the region has and whose price is known; see `Cloud`."""
        return self._offers.read()

    def launch(self, order: LaunchOrder) -> str:
        """Launch a machine and return its id; see `Cloud`. The same order again returns the same machine."""
        if order.region != self._account.region:
            message = f"AWS: the keys are for {self._account.region}, and the order is for {order.region}."
            raise CloudError(CloudErrorKind.invalid_request, message)
        if len(order.user_data.encode()) > MAX_USER_DATA_BYTES:
            message = f"AWS: the user data is larger than {MAX_USER_DATA_BYTES:,} bytes."
            raise CloudError(CloudErrorKind.invalid_request, message)
        request = self._make_request(order, *self._find_image(), self._find_security_group())
        with translate_errors("run_instances"):
            reply = self._ec2.run_instances(**request)
        launched = reply.get("Instances") or []
        if not launched:
            raise CloudError(CloudErrorKind.unreachable, "AWS: run_instances: a response without a machine.")
        return str(launched[0]["InstanceId"])

    def list_tagged(self, installation: str) -> list[Machine]:
        """Return the machines of an installation that are not terminated; see `Cloud`.

        The SSH host keys of running machines are read from their consoles, of a few with each call.
        """
        found = self._list({"Name": f"tag:{TAG_INSTALLATION}", "Values": [installation]})
        notices = self._read_notices(found)
        running = [item["InstanceId"] for item in found if item["State"]["Name"] == "running"]
        with self._lock:
            unread = [machine_id for machine_id in running if machine_id not in self._host_keys]
        # Those that were read the least come first, so that a console without keys keeps none waiting.
        for machine_id in sorted(unread, key=self._console_reads.__getitem__)[:MAX_CONSOLES]:
            self._read_host_keys(machine_id)
        return [self._make_machine(item, notices) for item in found]

    def list_foreign(self, installation: str) -> list[Machine]:
        """Return the machines of other installations that are not terminated; see `Cloud`."""
        found = self._list({"Name": "tag-key", "Values": [TAG_INSTALLATION]})
        machines = [self._make_machine(item, {}) for item in found]
        return [machine for machine in machines if machine.installation != installation]

    def describe(self, machine_id: str) -> Machine | None:
        """Return a machine, with the SSH host keys that its console shows; see `Cloud`."""
        try:
            with translate_errors("describe_instances"):
                found = _instances_of(self._ec2.describe_instances(InstanceIds=[machine_id]))
        except UnknownAwsMachine:
            return None
        if not found:
            return None
        if found[0]["State"]["Name"] == "running":
            self._read_host_keys(machine_id)
        return self._make_machine(found[0], self._read_notices(found))

    def terminate(self, machine_id: str) -> None:
        """Terminate a machine; see `Cloud`."""
        try:
            with translate_errors("terminate_instances"):
                self._ec2.terminate_instances(InstanceIds=[machine_id])
        except UnknownAwsMachine:
            return

    def _list(self, tag_filter: dict[str, Any]) -> list[dict[str, Any]]:
        filters = [tag_filter, {"Name": "instance-state-name", "Values": LISTED_STATES}]
        with translate_errors("describe_instances"):
            pages = self._ec2.get_paginator("describe_instances").paginate(Filters=filters)
            return [item for page in pages for item in _instances_of(page)]

    def _find_image(self) -> tuple[str, str]:
        """Return the id of the image that new machines start from, and its root device; kept for an hour."""
        with self._lock:
            if self._found_image is not None and time.monotonic() - self._image_at < IMAGE_SECONDS:
                return self._found_image
        image_id = self._image
        if image_id.startswith("/"):
            with translate_errors(f"get_parameter {image_id}"):
                image_id = str(self._open("ssm").get_parameter(Name=image_id)["Parameter"]["Value"])
        with translate_errors("describe_images"):
            images = self._ec2.describe_images(ImageIds=[image_id])["Images"]
        if not images:
            raise CloudError(CloudErrorKind.invalid_request, f"AWS: there is no image {image_id}.")
        found = image_id, str(images[0].get("RootDeviceName") or "/dev/sda1")
        with self._lock:
            self._found_image, self._image_at = found, time.monotonic()
        return found

    def _find_security_group(self) -> str:
        """Return the id of the security group, which the account may give by its name."""
        group = self._security_group
        if group.startswith("sg-"):
            return group
        with translate_errors("describe_security_groups"):
            subnets = self._ec2.describe_subnets(SubnetIds=[self._account.subnet_id])["Subnets"]
            filters = [
                {"Name": "group-name", "Values": [group]},
                {"Name": "vpc-id", "Values": [subnets[0]["VpcId"]]},
            ]
            found = self._ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
        if not found:
            message = f"AWS: the network of {self._account.subnet_id} has no security group {group}."
            raise CloudError(CloudErrorKind.invalid_request, message)
        self._security_group = str(found[0]["GroupId"])
        return self._security_group

    def _make_request(
        self, order: LaunchOrder, image_id: str, root_device: str, security_group: str
    ) -> dict[str, Any]:
        """Return the parameters of `run_instances`, which depend on the order and the account alone."""
        tags = [{"Key": "Name", "Value": order.name}]
        tags += [{"Key": key, "Value": value} for key, value in order.tags.items()]
        request: dict[str, Any] = {
            "ClientToken": order.token,
            "ImageId": image_id,
            "InstanceType": order.type,
            "MinCount": 1,
            "MaxCount": 1,
            "KeyName": self._account.key_name,
            "SecurityGroupIds": [security_group],
            "SubnetId": self._account.subnet_id,
            "UserData": order.user_data,
            # The dead-man's timer of the machine shuts it down, which must end its cost.
            "InstanceInitiatedShutdownBehavior": "terminate",
            # Without a token, a request that a page makes a program on the machine send gets no credentials.
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            "BlockDeviceMappings": [
                {
                    "DeviceName": root_device,
                    "Ebs": {
                        "VolumeSize": self._disk_gib,
                        "VolumeType": "gp3",
                        "Encrypted": True,
                        "DeleteOnTermination": True,
                    },
                }
            ],
            "TagSpecifications": [
                {"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume", "network-interface")
            ],
        }
        if order.spot:
            request["InstanceMarketOptions"] = {
                "MarketType": "spot",
                "SpotOptions": {
                    "SpotInstanceType": "one-time",
                    "InstanceInterruptionBehavior": "terminate",
                },
            }
        return request

    def _read_notices(self, instances: list[dict[str, Any]]) -> dict[str, str]:
        """Return the notices of interruption of spot machines, by the id of their request."""
        ids = [item["SpotInstanceRequestId"] for item in instances if item.get("SpotInstanceRequestId")]
        if not ids:
            return {}
        # By a filter: an id that AWS has forgotten is not an error then.
        filters = [{"Name": "spot-instance-request-id", "Values": ids}]
        with translate_errors("describe_spot_instance_requests"):
            reply = self._ec2.describe_spot_instance_requests(Filters=filters)
        statuses = {
            request["SpotInstanceRequestId"]: request.get("Status") or {}
            for request in reply["SpotInstanceRequests"]
        }
        return {
            request: f"{status.get('Code')}: {status.get('Message', '')}"[:300]
            for request, status in statuses.items()
            if str(status.get("Code")).startswith(_INTERRUPTIONS) and status.get("Code") != _OWN_END
        }

    def _read_host_keys(self, machine_id: str) -> None:
        """Keep the SSH host keys from the console, once it shows them: it is empty for minutes."""
        with self._lock:
            if machine_id in self._host_keys:
                return
            self._console_reads[machine_id] += 1
        try:
            with translate_errors("get_console_output"):
                reply = self._ec2.get_console_output(InstanceId=machine_id, Latest=True)
        except (CloudError, UnknownAwsMachine) as error:
            # Only Nitro machines have the latest output. Without keys, the machine is still described.
            logger.info("no console output of %s: %s", machine_id, error)
            return
        keys = find_ssh_host_keys(str(reply.get("Output") or ""))
        if keys:
            with self._lock:
                self._host_keys[machine_id] = keys

    def _make_machine(self, instance: dict[str, Any], notices: dict[str, str]) -> Machine:
        tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags") or []}
        epoch = tags.get(TAG_EPOCH, "")
        reason = instance.get("StateReason") or {}
        notice = notices.get(str(instance.get("SpotInstanceRequestId")))
        if notice is None and reason.get("Code") == "Server.SpotInstanceTermination":
            notice = str(reason.get("Message") or reason["Code"])[:300]
        return Machine(
            id=instance["InstanceId"],
            state=STATES.get(instance["State"]["Name"], MachineState.unknown),
            type=instance.get("InstanceType"),
            region=self._account.region,
            installation=tags.get(TAG_INSTALLATION),
            host_id=tags.get(TAG_HOST),
            epoch=int(epoch) if epoch.isdecimal() else None,
            name=tags.get("Name"),
            address=instance.get("PublicIpAddress") or instance.get("PrivateIpAddress"),
            ssh_user=DEFAULT_SSH_USER,
            ssh_host_keys=self._host_keys.get(instance["InstanceId"], ()),
            launched_at=instance.get("LaunchTime"),
            spot=instance.get("InstanceLifecycle") == "spot",
            interruption_notice=notice,
        )


def _instances_of(page: dict[str, Any]) -> list[dict[str, Any]]:
    reservations: Iterable[dict[str, Any]] = page.get("Reservations") or []
    return [instance for reservation in reservations for instance in reservation["Instances"]]
