"""Goal: a container whose worker hangs is reported, cheaply. Method: heartbeats, and their absence."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from workers.healthcheck import main, write_heartbeat


def test_a_worker_is_healthy_until_three_heartbeats_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "heartbeat"
    assert main([str(path)]) == 1 and "no heartbeat yet" in capsys.readouterr().out
    write_heartbeat(path, heartbeat_seconds=10)
    assert main([str(path)]) == 0
    write_heartbeat(path, heartbeat_seconds=-1)
    assert main([str(path)]) == 1 and "late" in capsys.readouterr().out
    assert [each.name for each in tmp_path.iterdir()] == ["heartbeat"]


def test_the_check_imports_no_package(tmp_path: Path) -> None:
    write_heartbeat(tmp_path / "heartbeat", heartbeat_seconds=10)
    code = (
        "import sys, workers.healthcheck as check; status = check.main(sys.argv[1:]); "
        "sys.exit(status or any(name in sys.modules for name in ('pydantic', 'sqlalchemy', 'torch')))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "heartbeat")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
