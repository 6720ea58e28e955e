"""A cloud of simulated machines on a simulated clock, which loses requests and responses.

It is worse than a real cloud where that is harder for its caller: a launch whose response was lost may take
effect a minute later, its list is late, and it never recognizes a repeated launch. It records the bill.
"""

import itertools
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, literal

from app.storage.database import UTCDateTime
from trainers.configs.clouds.offers import CloudName, Offer, PriceSource
from workers.clouds.protocol import CloudError, CloudErrorKind, LaunchOrder, Machine, MachineState

START = datetime(2026, 1, 1, tzinfo=UTC)
MAX_LATE_SECONDS = 60.0
MAX_LIST_SECONDS = 30.0
NOTICE_SECONDS = 120.0
TYPES = {"gpu_1x_a10": 0.75, "gpu_1x_h100": 3.29, "gpu_8x_h100": 23.92}


class Crash(BaseException):
    """The process of the caller is killed here."""


class SimulatedClock:
    """A clock that the simulation moves; SQL reads it as a literal."""

    def __init__(self) -> None:
        self.now = START

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def __call__(self, plus_seconds: float) -> ColumnElement[datetime]:
        return literal(self.now + timedelta(seconds=plus_seconds), UTCDateTime())


@dataclass
class FaultRates:
    """How often each fault happens, as shares of the calls; `crash` also of the commits."""

    crash: float = 0.002
    lost_request: float = 0.04
    lost_response: float = 0.06
    rate_limited: float = 0.05
    no_capacity: float = 0.2
    refused: float = 0.01
    other_account: float = 0.01
    """Share of the steps before which the keys of the cloud are replaced by those of the other account."""
    restoration: float = 0.003
    """Share of the steps before which an older state of the database is restored."""


@dataclass
class SimulatedMachine:
    """A machine, and the plan for its life."""

    id: str
    order: LaunchOrder
    account: str
    launched_at: datetime
    listed_at: datetime
    runs_at: datetime | None
    """None: it never runs."""
    has_cuda: bool
    interrupted_at: datetime | None
    crashes_at: datetime | None
    """When its worker disappears; None: never."""
    ended_at: datetime | None = None
    unseen_seconds: float = 0.0
    """How long nobody could end it, since the keys did not show it or a person had to decide."""

    def bill(self, now: datetime) -> float:
        """Return its price until now in US dollars, to the second."""
        seconds = ((self.ended_at or now) - self.launched_at).total_seconds()
        return TYPES[self.order.type] * max(0.0, seconds) / 3600


@dataclass
class SimulatedCloud:
    """The five calls, with faults."""

    clock: SimulatedClock
    random: random.Random
    rates: FaultRates
    name: CloudName = CloudName.lambda_cloud
    region: str | None = None
    machines: dict[str, SimulatedMachine] = field(default_factory=dict)
    double_launches: list[str] = field(default_factory=list)
    fault_count: int = 0
    account: str = "account-a"
    """The account of the keys, which show no machine of another one."""
    is_out: bool = False
    """Whether no call arrives."""
    undecided: set[str] = field(default_factory=set)
    """Machines that a person must decide about."""
    is_held: bool = False
    """Whether nothing may be launched or terminated."""
    unasked_acts: list[str] = field(default_factory=list)
    """What was launched or terminated although a person had not decided."""
    _stated: str | None = "account-a"
    _ids: "itertools.count[int]" = field(default_factory=itertools.count)

    def change_keys(self, account: str) -> None:
        """Replace the keys; their process is new, and has read nothing."""
        self.account, self._stated = account, None

    def read_account(self) -> str:
        if self._stated is None:
            self._arrive()
            self._respond()
            self._stated = self.account
        return self._stated

    def find_own_accounts(self, marks: set[str]) -> set[str]:
        return marks & {self.read_account()} if marks else set()

    def list_offers(self) -> list[Offer]:
        self._arrive()
        return [
            Offer(
                cloud=self.name,
                type=name,
                region="us-west-1",
                spot=spot,
                gpu_name="A10",
                gpu_count=1,
                usd_per_hour=price,
                price_source=PriceSource.table,
                price_date=START,
            )
            for name, price in TYPES.items()
            for spot in (False, True)
        ]

    def launch(self, order: LaunchOrder) -> str:
        if self.is_held:
            self.unasked_acts.append(f"launch for {order.host_id}")
        self._arrive(may_be_late=order)
        if self._happens(self.rates.no_capacity):
            raise CloudError(CloudErrorKind.no_capacity, "no capacity")
        if self._happens(self.rates.refused):
            raise CloudError(CloudErrorKind.quota_exceeded, "quota exceeded")
        machine = self._create(order, 0.0)
        self._respond()
        return machine.id

    def list_tagged(self, installation: str) -> list[Machine]:
        self._arrive()
        listed = [
            machine
            for machine in self.machines.values()
            if machine.listed_at <= self.clock.now and self._is_known(machine)
        ]
        self._respond()
        return [self._view(machine) for machine in listed if machine.order.installation == installation]

    def list_foreign(self, installation: str) -> list[Machine]:
        return []

    def describe(self, machine_id: str) -> Machine | None:
        self._arrive()
        machine = self.machines.get(machine_id)
        self._respond()
        return self._view(machine) if machine is not None and self._is_known(machine) else None

    def terminate(self, machine_id: str) -> None:
        if self.is_held or machine_id in self.undecided:
            self.unasked_acts.append(f"terminate {machine_id}")
        self._arrive()
        machine = self.machines.get(machine_id)
        if machine is not None and machine.account == self.account:
            self.end(machine)
        self._respond()

    def end(self, machine: SimulatedMachine) -> None:
        """End a machine, and with it its bill."""
        machine.ended_at = machine.ended_at or self.clock.now

    def pass_time(self) -> None:
        """Take back the machines whose notice has ended."""
        for machine in self.machines.values():
            if machine.interrupted_at is None or machine.ended_at is not None:
                continue
            taken_at = machine.interrupted_at + timedelta(seconds=NOTICE_SECONDS)
            machine.ended_at = taken_at if taken_at <= self.clock.now else None

    def crash_perhaps(self) -> None:
        """Kill the caller, now and then."""
        if self._happens(self.rates.crash):
            raise Crash

    def _arrive(self, may_be_late: LaunchOrder | None = None) -> None:
        self.clock.advance(self.random.uniform(0.05, 0.5))
        self.crash_perhaps()
        if self.is_out:
            raise CloudError(CloudErrorKind.unreachable, "connection refused")
        if self._happens(self.rates.rate_limited):
            raise CloudError(
                CloudErrorKind.rate_limited, "too many requests", self.random.choice([None, 12.0])
            )
        if self._happens(self.rates.lost_request):
            if may_be_late is not None and self.random.random() < 0.5:
                self._create(may_be_late, self.random.uniform(1, MAX_LATE_SECONDS))
            raise CloudError(CloudErrorKind.unreachable, "timeout")

    def _respond(self) -> None:
        self.crash_perhaps()
        if self._happens(self.rates.lost_response):
            raise CloudError(CloudErrorKind.unreachable, "connection reset")

    def _create(self, order: LaunchOrder, late_seconds: float) -> SimulatedMachine:
        draw = self.random
        launched_at = self.clock.now + timedelta(seconds=late_seconds)
        runs_at = launched_at + timedelta(seconds=draw.uniform(60, 600))
        machine = SimulatedMachine(
            id=f"machine-{next(self._ids)}",
            order=order,
            account=self.account,
            launched_at=launched_at,
            listed_at=launched_at + timedelta(seconds=draw.uniform(0, MAX_LIST_SECONDS)),
            runs_at=runs_at if draw.random() < 0.92 else None,
            has_cuda=draw.random() < 0.92,
            interrupted_at=runs_at + timedelta(seconds=draw.expovariate(1 / 3600)) if order.spot else None,
            crashes_at=runs_at + timedelta(seconds=draw.uniform(0, 3600)) if draw.random() < 0.05 else None,
        )
        self.double_launches += [
            other.id
            for other in self.machines.values()
            if other.order.host_id == order.host_id and other.ended_at is None
        ]
        self.machines[machine.id] = machine
        return machine

    def _view(self, machine: SimulatedMachine) -> Machine:
        state = MachineState.booting
        if machine.ended_at is not None:
            late = self.clock.now < machine.ended_at + timedelta(seconds=30)
            state = MachineState.terminating if late else MachineState.terminated
        elif machine.runs_at is not None and machine.runs_at <= self.clock.now:
            state = MachineState.running
        notice = machine.interrupted_at is not None and machine.interrupted_at <= self.clock.now
        return Machine(
            id=machine.id,
            state=state,
            installation=machine.order.installation,
            host_id=machine.order.host_id,
            epoch=machine.order.epoch,
            address="192.0.2.1" if state is MachineState.running else None,
            spot=machine.order.spot,
            interruption_notice="interrupted" if notice else None,
        )

    def _is_known(self, machine: SimulatedMachine) -> bool:
        """Return whether the cloud shows the machine to the keys: it forgets those that have ended."""
        is_forgotten = machine.ended_at is not None and self.clock.now > machine.ended_at + timedelta(
            seconds=90
        )
        return machine.account == self.account and not is_forgotten

    def _happens(self, rate: float) -> bool:
        happens = self.random.random() < rate
        self.fault_count += happens
        return happens
