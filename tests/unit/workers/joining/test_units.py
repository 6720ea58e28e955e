"""The units of workers, and the file of their variables.

Goal: systemd and launchd understand what `join` writes, whatever the paths contain, and the secrets are
readable by one user only. Method: the text is checked by `systemd-analyze` where it is installed, and read
back.
"""

import os
import plistlib
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.properties import QUICK
from tests.services import find_program, require_root
from workers.__main__ import program
from workers.joining.control_plane import JoinFailed
from workers.joining.env_file import load_env_file, read_env_file, write_env_file
from workers.joining.join import JoinOptions, default_data_dir, find_joined_env_file, write_variables
from workers.joining.units import WorkerUnit

LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)


def make_unit(folder: Path, user: str = "") -> WorkerUnit:
    return WorkerUnit(Path(sys.executable), folder, folder / "worker.env", "gpu-1", ("cuda", "cpu"), user)


@pytest.mark.parametrize("name", ["plain", "with space", "50%$HOME"])
@pytest.mark.parametrize("user", ["", "root"])
def test_systemd_accepts_the_unit(tmp_path: Path, name: str, user: str) -> None:
    (tmp_path / name).mkdir()
    text = make_unit(tmp_path / name, user).to_systemd()
    assert ("User=root" in text, "WantedBy=multi-user.target" in text) == (bool(user), bool(user))
    find_program("systemd-analyze")
    unit = tmp_path / "tunesmith-worker.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "tunesmith-worker" in line]
    assert ours == []


def test_launchd_gets_the_command_as_it_is(tmp_path: Path) -> None:
    unit = make_unit(tmp_path / "with space & <brackets>")
    values = plistlib.loads(unit.to_launchd().encode())
    assert values["ProgramArguments"] == unit.command
    assert values["KeepAlive"] and values["RunAtLoad"] and "UserName" not in values


@QUICK
@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{0,10}", fullmatch=True), LINE, max_size=5))
def test_a_value_is_read_as_it_was_written(values: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "worker.env"
        write_env_file(path, values, None)
        assert read_env_file(path) == values
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_value_of_two_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line break"):
        write_env_file(tmp_path / "worker.env", {"A": "1\nB=2"}, None)


def test_variables_of_the_shell_precede_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOIN_TEST_A", "shell")
    monkeypatch.delenv("JOIN_TEST_B", raising=False)
    write_env_file(tmp_path / "worker.env", {"JOIN_TEST_A": "file", "JOIN_TEST_B": "file"}, None)
    load_env_file(tmp_path / "worker.env")
    assert (os.environ["JOIN_TEST_A"], os.environ.pop("JOIN_TEST_B")) == ("shell", "file")


def test_a_folder_of_another_user_is_left_as_it_is(tmp_path: Path) -> None:
    require_root("name another user")
    assert default_data_dir("daemon") == Path("/var/lib/tunesmith")
    options = JoinOptions("http://127.0.0.1:9", "key", "host", tmp_path, user="daemon")
    with pytest.raises(JoinFailed, match="does not belong to the user daemon"):
        write_variables(options)
    assert tmp_path.stat().st_uid == 0


def test_an_address_without_a_scheme_is_refused_with_one_that_has_it(tmp_path: Path) -> None:
    options = JoinOptions("10.0.0.5:8000", "ts_x", "gpu-1", tmp_path)
    with pytest.raises(JoinFailed, match=r"such as http://10\.0\.0\.5:8000"):
        write_variables(options)


@pytest.mark.parametrize("command", [["join", "--url", "http://127.0.0.1:9"], ["leave"]])
def test_a_user_that_does_not_exist_is_named(command: list[str]) -> None:
    result = CliRunner().invoke(program, [*command, "--user", "nobody-of-this-name"])
    assert result.exit_code == 1 and "useradd --create-home nobody-of-this-name" in str(result.output)


def test_the_file_of_a_joined_host_is_found_unless_settings_name_a_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNESMITH_DATABASE_URL", raising=False)
    monkeypatch.setattr("workers.joining.join.default_data_dir", lambda user: tmp_path)
    assert find_joined_env_file() is None
    (tmp_path / "worker.env").write_text("TUNESMITH_DATABASE_URL='postgresql://h/d'\n")
    assert find_joined_env_file() == tmp_path / "worker.env"
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", "sqlite:///other.db")
    assert find_joined_env_file() is None
