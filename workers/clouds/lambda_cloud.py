"""Machines at Lambda, through a small client of our own (see docs/decisions).

Lambda has no idempotency token and does not say when a machine was launched. Name and tags therefore carry
installation, host and epoch, and `launch` looks for a machine of its order first.
"""

import hashlib
import re
import subprocess
import threading
from datetime import UTC, datetime
from typing import Any

from trainers.configs.clouds import CloudName, Offer, PriceSource
from workers.clouds.accounts import LambdaAccount
from workers.clouds.lambda_api import DUPLICATE, MISSING, LambdaApi, LambdaRefused
from workers.clouds.price_table import MachineSpecs, ReadPrice, load_price_table, make_offer, sort_offers
from workers.clouds.protocol import (
    TAG_EPOCH,
    TAG_HOST,
    TAG_INSTALLATION,
    CloudError,
    CloudErrorKind,
    LaunchOrder,
    Machine,
    MachineState,
    machine_name,
)

MAX_USER_DATA_BYTES = 1_000_000
STATES = {
    "booting": MachineState.booting,
    "active": MachineState.running,
    "unhealthy": MachineState.unhealthy,
    "terminating": MachineState.terminating,
    # Lambda has taken it back. Its contract calls `terminate` the only end of the bill, so that one follows.
    "preempted": MachineState.stopped,
    "terminated": MachineState.terminated,
}
_NAME = re.compile(r"tunesmith-(.+)-([a-z0-9_]+)-([0-9]{1,4})")
_MEMORY = re.compile(r"\((\d+) GB")


class LambdaCloud:
    """The machines of one account. Threads share it."""

    name = CloudName.lambda_cloud
    region: str | None = None

    def __init__(
        self,
        account: LambdaAccount,
        image_family: str | None = None,
        prices: dict[str, float] | None = None,
        api: LambdaApi | None = None,
    ) -> None:
        """Create a client; without an image, Lambda takes its newest Lambda Stack.

        `prices` in US dollars per hour replace Lambda's, by type.
        """
        self._account, self._image_family, self._given = account, image_family, prices or {}
        self._api = api or LambdaApi(account)
        self._ssh_key_name: str | None = None
        self._own_account: str | None = None
        self._key_ids: set[str] = set()
        self._lock = threading.Lock()

    def read_account(self) -> str:
        """Return the id that Lambda has given to the SSH key of new machines; see `Cloud`.

        Lambda has no call for the account itself. Such an id belongs to one account, whatever its API keys.
        """
        if self._own_account is None:
            name = self._find_ssh_key_name()
            ids = [str(item["id"]) for item in self._list("/ssh-keys") if item.get("name") == name]
            if not ids:
                raise CloudError(CloudErrorKind.unreachable, f"Lambda: the SSH key {name} is not listed yet.")
            self._own_account = ids[0]
        return self._own_account

    def find_own_accounts(self, marks: set[str]) -> set[str]:
        """Return the marks that are ids of SSH keys of the account; see `Cloud`.

        An id that was read once stays one of the account's if somebody deletes the SSH key.
        """
        if not marks <= self._key_ids:
            self._key_ids |= {str(item.get("id")) for item in self._list("/ssh-keys")}
        return marks & self._key_ids

    def list_offers(self) -> list[Offer]:
        """Return the types with GPUs in the account's region and where they are available; see `Cloud`."""
        now = datetime.now(UTC)
        offers: list[Offer | None] = []
        for name, item in _object(self._api.get("/instance-types")).items():
            specs = _read_specs(name, _object(item).get("instance_type"))
            if specs is None or specs.gpu_count == 0:
                continue
            available = {
                str(region.get("name")) for region in item.get("regions_with_capacity_available", [])
            }
            price = ReadPrice(self._given[name], now, PriceSource.setting) if name in self._given else None
            if price is None and specs.usd_per_hour is not None:
                price = ReadPrice(specs.usd_per_hour, now)
            offers += [
                make_offer(
                    CloudName.lambda_cloud,
                    specs,
                    region,
                    price,
                    has_capacity=region in available,
                    is_default=name == self._account.instance_type,
                    is_home=region == self._account.region,
                )
                for region in sorted(available | {self._account.region})
            ]
        return sort_offers([offer for offer in offers if offer is not None])

    def launch(self, order: LaunchOrder) -> str:
        """Launch a machine, unless the list has one of this order, and return its id; see `Cloud`."""
        if len(order.user_data.encode()) > MAX_USER_DATA_BYTES:
            message = f"Lambda: the user data is larger than {MAX_USER_DATA_BYTES:,} bytes."
            raise CloudError(CloudErrorKind.invalid_request, message)
        if order.spot:
            raise CloudError(CloudErrorKind.invalid_request, "Lambda has no spot machines.")
        for machine in self.list_tagged(order.installation):
            if (machine.host_id, machine.epoch) == (order.host_id, order.epoch):
                return machine.id
        body: dict[str, Any] = {
            "region_name": order.region,
            "instance_type_name": order.type,
            "ssh_key_names": [self._find_ssh_key_name()],
            "name": order.name,
            "tags": [{"key": key, "value": value} for key, value in order.tags.items()],
            "user_data": order.user_data,
        }
        if self._image_family is not None:
            body["image"] = {"family": self._image_family}
        self._api.reserve_launch()
        ids = _object(self._api.post("/instance-operations/launch", body)).get("instance_ids")
        if not isinstance(ids, list) or not ids:
            raise CloudError(CloudErrorKind.unreachable, "Lambda: a launch without the id of a machine.")
        return str(ids[0])

    def list_tagged(self, installation: str) -> list[Machine]:
        """Return the machines of an installation by tags, or without them by name; see `Cloud`."""
        return [machine for machine, is_own in self._list_machines(installation) if is_own]

    def list_foreign(self, installation: str) -> list[Machine]:
        """Return the machines of other installations, by tags or names; see `Cloud`."""
        return [machine for machine, is_own in self._list_machines(installation) if not is_own]

    def describe(self, machine_id: str) -> Machine | None:
        """Return a machine; see `Cloud`. Lambda has no channel for its SSH host keys."""
        try:
            item = _object(self._api.get(f"/instances/{_checked_id(machine_id)}"))
        except LambdaRefused as error:
            if error.refusal == MISSING:
                return None
            raise
        tags = _read_tags(item)
        owner, epoch = tags.get(TAG_INSTALLATION), tags.get(TAG_EPOCH, "")
        return self._make_machine(item, tags.get(TAG_HOST), epoch, owner)

    def terminate(self, machine_id: str) -> None:
        """Terminate a machine; see `Cloud`."""
        body = {"instance_ids": [_checked_id(machine_id)]}
        try:
            reply = _object(self._api.post("/instance-operations/terminate", body))
        except LambdaRefused as error:
            if error.refusal == MISSING:
                return
            raise
        terminated = reply.get("terminated_instances")
        ids = [item.get("id") for item in terminated] if isinstance(terminated, list) else []
        if machine_id not in ids:
            message = f"Lambda: the response does not say that {machine_id} is terminated."
            raise CloudError(CloudErrorKind.unreachable, message)

    def _find_ssh_key_name(self) -> str:
        """Return Lambda's name of the account's SSH key, which is registered if it is not there."""
        with self._lock:
            if self._ssh_key_name is None:
                public_key = self._read_public_key()
                name = f"tunesmith-{hashlib.sha256(public_key.encode()).hexdigest()[:16]}"
                self._ssh_key_name = self._find_registered(public_key) or self._register(name, public_key)
            return self._ssh_key_name

    def _find_registered(self, public_key: str) -> str | None:
        """Return the name of a key at Lambda, which keeps the comment of the key's line."""
        for item in self._list("/ssh-keys"):
            if str(item.get("public_key")).split()[:2] == public_key.split():
                return str(item["name"])
        return None

    def _register(self, name: str, public_key: str) -> str:
        try:
            self._api.post("/ssh-keys", {"name": name, "public_key": public_key})
        except LambdaRefused as error:
            # The response to an earlier request was lost, or another worker was faster.
            if error.refusal != DUPLICATE:
                raise
        return name

    def _read_public_key(self) -> str:
        """Return the public key as `type base64`, of the file `.pub` or by ssh-keygen."""
        path = self._account.ssh_key_path
        public = path.with_name(f"{path.name}.pub")
        try:
            if public.is_file():
                text = public.read_text(encoding="utf-8")
            else:
                # An empty passphrase: a key with another one must have the file.
                command = ["ssh-keygen", "-y", "-P", "", "-f", str(path)]
                text = subprocess.run(
                    command, capture_output=True, text=True, check=True, timeout=30, stdin=subprocess.DEVNULL
                ).stdout
            kind, key = text.split()[:2]
        except (OSError, ValueError, subprocess.SubprocessError):
            raise CloudError(
                CloudErrorKind.unauthorized,
                f"LAMBDA_SSH_KEY_PATH ({path}) is not an SSH key that can be read.",
            ) from None
        return f"{kind} {key}"

    def _list(self, path: str) -> list[dict[str, Any]]:
        data = self._api.get(path)
        if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
            raise CloudError(CloudErrorKind.unreachable, f"Lambda: GET {path}: the response is not a list.")
        return data

    def _list_machines(self, installation: str) -> list[tuple[Machine, bool]]:
        """Return the machines of Tunesmith that may be billed, and whether each is of the installation."""
        found = []
        for item in self._list("/instances"):
            tags = _read_tags(item)
            owner, host_id, epoch = tags.get(TAG_INSTALLATION), tags.get(TAG_HOST), tags.get(TAG_EPOCH, "")
            if owner is None:
                match = _NAME.fullmatch(str(item.get("name") or ""))
                if match is None:
                    continue
                owner, host_id, epoch = match[1], match[2], match[3]
                if match[0] == machine_name(installation, host_id, int(epoch)):
                    owner = installation
            machine = self._make_machine(item, host_id, epoch, owner)
            if not machine.state.is_gone:
                found.append((machine, owner == installation))
        return found

    def _make_machine(
        self, item: dict[str, Any], host_id: str | None, epoch: str, installation: str | None
    ) -> Machine:
        if "id" not in item:
            raise CloudError(CloudErrorKind.unreachable, "Lambda: the response has a machine without an id.")
        status = str(item.get("status"))
        return Machine(
            id=str(item["id"]),
            state=STATES.get(status, MachineState.unknown),
            type=_object(item.get("instance_type")).get("name"),
            region=_object(item.get("region")).get("name"),
            installation=installation,
            host_id=host_id,
            epoch=int(epoch) if epoch.isdecimal() else None,
            name=item.get("name"),
            address=item.get("ip"),
            ssh_user=self._account.ssh_user,
            interruption_notice="preempted" if status == "preempted" else None,
        )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_tags(item: dict[str, Any]) -> dict[str, str]:
    tags = item.get("tags")
    found = [tag for tag in tags if isinstance(tag, dict)] if isinstance(tags, list) else []
    return {str(tag.get("key")): str(tag.get("value")) for tag in found}


def _checked_id(machine_id: str) -> str:
    """Return an id that can be a part of a path."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", machine_id):
        raise CloudError(CloudErrorKind.invalid_request, f"{machine_id!r} is not the id of a machine.")
    return machine_id


def _read_specs(name: str, item: Any) -> MachineSpecs | None:
    """Return Lambda's description of a type, with our table's memory of the GPU; None if it has none."""
    known = load_price_table(CloudName.lambda_cloud).types.get(name)
    described = _object(item)
    specs = _object(described.get("specs"))
    cents = described.get("price_cents_per_hour")
    if not isinstance(specs.get("gpus"), int) or not isinstance(cents, int | float):
        return None
    gpu = str(described.get("gpu_description") or "")[:64]
    memory = _MEMORY.search(gpu)
    return MachineSpecs(
        type=name,
        gpu_name=known.gpu_name if known else gpu or None,
        gpu_count=specs["gpus"],
        gpu_memory_gib=known.gpu_memory_gib if known else float(memory[1]) if memory else None,
        cpu_count=specs.get("vcpus"),
        memory_gib=specs.get("memory_gib"),
        usd_per_hour=cents / 100,
    )
