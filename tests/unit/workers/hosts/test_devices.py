"""GPUs are reserved for all processes of the host, by locks that the kernel releases."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.workers.gpus import Gpu
from trainers.configs import Queue
from workers.hosts.devices import NO_DEVICES, DevicePool, Devices

GPUS = [Gpu(index, f"GPU-{index}", "H200", 1) for index in range(4)]
PARTS = [Gpu(4, f"MIG-{part}", "A100 MIG", 1, "GPU-4") for part in "ab"]


MakePool = Callable[..., DevicePool]


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[MakePool]:
    """Yield a function that creates a pool; all pools share one folder, as the workers of a host do."""
    pools: list[DevicePool] = []

    def make(gpus: list[Gpu] = GPUS) -> DevicePool:
        pools.append(DevicePool(gpus, tmp_path / "locks"))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def indices(devices: Devices | None) -> list[int] | None:
    return [gpu.index for gpu in devices.gpus] if devices is not None else None


def take(pool: DevicePool, count: int) -> Devices:
    devices = pool.take(Queue.cuda, count)
    assert devices is not None
    return devices


def test_gpus_are_reserved_all_or_none(make_pool: MakePool) -> None:
    pool = make_pool()
    first = take(pool, 3)
    assert indices(first) == [0, 1, 2]
    assert pool.take(Queue.cuda, 2) is None
    assert indices(pool.take(Queue.cuda, 1)) == [3], "the failed reservation released what it had"
    pool.release(first)
    assert indices(pool.take(Queue.cuda, 3)) == [0, 1, 2]


def test_pools_of_one_host_share_its_gpus(make_pool: MakePool) -> None:
    one, other = make_pool(), make_pool(GPUS[2:])
    assert indices(one.take(Queue.cuda, 3)) == [0, 1, 2]
    assert indices(other.take_free()) == [3]


def test_releasing_twice_does_not_release_the_next_holder(make_pool: MakePool) -> None:
    pool = make_pool(GPUS[:1])
    first = take(pool, 1)
    pool.release(first)
    second = take(pool, 1)
    pool.release(first)
    assert pool.take(Queue.cuda) is None
    pool.release(second)


def test_a_lock_lasts_as_long_as_the_last_process_that_inherited_it(make_pool: MakePool) -> None:
    pool = make_pool(GPUS[:1])
    devices = take(pool, 1)
    guard = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[lock.fileno() for lock in devices.locks],
    )
    pool.release(devices)
    assert pool.take(Queue.cuda) is None
    guard.kill()
    guard.communicate()
    assert pool.take(Queue.cuda) is not None


def test_a_deleted_lock_file_is_not_mistaken_for_the_lock(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(GPUS[:1])
    pool.release(take(pool, 1))
    (tmp_path / "locks" / "GPU-0.lock").unlink()
    take(pool, 1)
    assert make_pool(GPUS[:1]).take(Queue.cuda) is None


def test_other_users_can_lock_the_files(make_pool: MakePool, tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        take(make_pool(GPUS[:1]), 1)
    finally:
        os.umask(umask)
    assert (tmp_path / "locks").stat().st_mode & 0o7777 == 0o1777
    assert (tmp_path / "locks" / "GPU-0.lock").stat().st_mode & 0o777 == 0o644


def test_a_pool_starts_while_its_folder_is_being_cleaned_up(make_pool: MakePool, tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    cleaning = os.open(tmp_path / "locks", os.O_RDONLY)
    fcntl.flock(cleaning, fcntl.LOCK_EX)
    try:
        assert make_pool().take(Queue.cuda, 4) is not None
    finally:
        os.close(cleaning)


@pytest.mark.skipif(os.geteuid() == 0, reason="root opens every file")
def test_a_lock_file_that_cannot_be_opened_counts_as_held(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(GPUS[:1])
    (tmp_path / "locks" / "GPU-0.lock").touch(0)
    assert pool.take(Queue.cuda) is None


def test_programs_see_indices_of_the_pci_bus_or_uuids_next_to_mig_devices(make_pool: MakePool) -> None:
    assert NO_DEVICES.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert take(make_pool(), 2).environment == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    mixed = make_pool([*GPUS[2:], *PARTS])
    assert take(mixed, 1).environment["CUDA_VISIBLE_DEVICES"] == "MIG-a"
    assert take(mixed, 2).environment["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-3"


def test_a_run_for_several_gpus_gets_no_mig_device(make_pool: MakePool) -> None:
    pool = make_pool([GPUS[0], *PARTS])
    assert pool.max_gpus == 1
    assert pool.take(Queue.cuda, 2) is None
