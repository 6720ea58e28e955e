"""The checks of a host: `python -m workers doctor`, and the report in a worker's row.

Goal: a person learns what is wrong with a host, and how to fix it, before work fails there. Method: run the
command as a process on a host with real defects: a GPU's driver next to a torch without CUDA, a full disk, a
wrong clock, and a broker with another password.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from app.settings import Settings
from app.storage.database import read_session
from app.tables import Worker
from tests import services
from tests.chaos.faults.clock import REPAIRS
from tests.conftest import ROOT
from tests.e2e.test_devices import NVIDIA_SMI
from workers.doctor.check_result import MAX_TEXT_CHARACTERS, CheckResult
from workers.doctor.hardware import has_nvidia_device
from workers.doctor.packages import compare_versions
from workers.doctor.report import MAX_CHECKS, inspect
from workers.doctor.secret_files import check_secret_files
from workers.hosts.worker import WorkerContext
from workers.joining.env_file import write_env_file

PASSWORD = "correct-horse-battery"
DEFECTS = {"torch", "data directory", "clock", "broker"}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder of a disk without free space."""
    services.require_root("mount a small file system")
    folder = tmp_path / "full"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        with pytest.raises(OSError), (folder / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(65536))
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def run_doctor(*prefix: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "workers", "doctor", "--json"]
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_four_planted_defects_are_found_each_with_its_fix(
    full_disk: Path, postgres: str, tmp_path: Path
) -> None:
    services.find_program("faketime")
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(NVIDIA_SMI)
    smi.chmod(0o755)
    with services.redis_url(PASSWORD) as broker:
        done = run_doctor(
            "faketime", "--exclude-monotonic", "-f", "+180s",
            PYTHONPATH=str(REPAIRS),
            PATH=f"{smi.parent}:{os.environ['PATH']}",
            TUNESMITH_DATA_DIR=str(full_disk),
            TUNESMITH_ARTIFACTS_URL=f"file://{tmp_path}",
            TUNESMITH_DATABASE_URL=postgres,
            TUNESMITH_BROKER_URL=broker.replace(PASSWORD, "wrong-password"),
        )  # fmt: skip
    assert done.returncode == 1, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert {name for name, check in checks.items() if check["state"] == "error"} == DEFECTS
    assert all(checks[name]["fix"] for name in DEFECTS)
    assert "built for CPUs only" in checks["torch"]["found"]
    assert "180." in checks["clock"]["found"] or "179." in checks["clock"]["found"]
    assert "wrong-password" not in done.stdout, done.stdout
    assert "invalid username-password pair" in checks["broker"]["found"]


def test_a_worker_writes_the_report_into_its_row(worker: WorkerContext) -> None:
    report = inspect(worker.settings)
    worker.announce_report(report.to_row())
    with read_session() as session:
        stored: Any = session.get_one(Worker, worker.worker_id).host_report
    assert {check["name"] for check in stored["checks"]} >= {"driver", "torch", "clock", "artifact store"}
    assert len(json.dumps(stored)) < MAX_CHECKS * (2 * MAX_TEXT_CHARACTERS + 100)


def test_stored_secrets_that_other_users_can_read_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "worker.env"
    settings = Settings(data_dir=tmp_path)
    assert check_secret_files(settings) == []
    path.write_text("TUNESMITH_WORKER_KEY='ts_x'")
    path.chmod(0o640)
    (check,) = check_secret_files(settings)
    assert (check.state, f"{path} has mode 640" in check.found) == ("warning", True)
    assert f"chmod 600 {path}" in check.fix
    write_env_file(path, {"TUNESMITH_WORKER_KEY": "ts_y"}, None)
    assert [check.state for check in check_secret_files(settings)] == ["ok"]


def test_texts_of_a_report_are_bounded_and_contain_no_secrets() -> None:
    check = CheckResult.error("database", "postgresql://me:secret-password@host " + "x" * 1000, "y" * 1000)
    assert "secret-password" not in check.found
    assert (len(check.found), len(check.fix)) == (MAX_TEXT_CHARACTERS, MAX_TEXT_CHARACTERS)


def test_versions_outside_the_bounds_are_errors_and_other_than_the_pins_are_warnings() -> None:
    requirements = [Requirement("torch>=2.10"), Requirement("celery[redis]>=5.7")]
    pins = {"torch": "2.13.0", "celery": "5.7.0"}
    assert compare_versions(requirements, pins, {"torch": "2.13.0+cu128", "celery": "5.7.0"}).state == "ok"
    assert compare_versions(requirements, pins, {"torch": "2.12.0"}).state == "warning"
    wrong = compare_versions(requirements, pins, {"torch": "2.9.0"})
    assert (wrong.state, wrong.fix) == ("error", "Run `pip install -c constraints.txt 'torch'`.")


def test_a_gpu_without_a_driver_is_found_on_the_pci_bus(tmp_path: Path) -> None:
    for slot, vendor, kind in (("0", "0x10de", "0x030200"), ("1", "0x8086", "0x030000")):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "vendor").write_text(f"{vendor}\n")
        (tmp_path / slot / "class").write_text(f"{kind}\n")
    assert has_nvidia_device(tmp_path)
    (tmp_path / "0" / "class").write_text("0x020000\n")
    assert not has_nvidia_device(tmp_path)
