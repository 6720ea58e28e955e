"""User data: what may be part of it, and how it is quoted.

Goal: no text can become a command on a machine, and no key of a cloud account can be part of it.
"""

import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import QUICK
from workers.clouds.aws import MAX_USER_DATA_BYTES
from workers.clouds.user_data import CLOUD_SECRETS, HostSetup, TunnelAccess

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1Kq0P1uYt1sV1o0Vb3mYk9y8vF3pWq4Z5xX2cN7hTe"
SETUP = HostSetup(host_id="host_1", join_key="ts_0123456789abcdef", requirement="tunesmith[trainer]==1.2")
HOSTILE = [
    "a; reboot",
    "$(reboot)",
    "`reboot`",
    "a\nreboot",
    "a'b",
    'a"b',
    "a b",
    "--index-url=http://evil",
    "a\0b",
    "../x",
    "",
    "ä",
]


def read_values(script: str) -> list[str]:
    """Return the values that bash assigns, without running the program after them."""
    header = script.split("# Sets this machine up", 1)[0]
    names = [line.split("=", 1)[0] for line in header.splitlines()[1:] if "=" in line]
    shown = "".join(f'printf "%s\\0" "${name}"\n' for name in names)
    output = subprocess.run(["bash", "-c", header + shown], capture_output=True, check=True).stdout
    return output.decode().split("\0")[:-1]


def test_the_program_is_correct_bash_and_fits_into_awss_limit() -> None:
    script = replace(SETUP, spot=True, tunnel=TunnelAccess(KEY, (5432, 6379, 8000))).render({})
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    assert script.startswith("#!/bin/bash\n")
    assert len(script.encode()) < MAX_USER_DATA_BYTES


def test_the_end_of_the_machine_is_prepared_before_anything_else() -> None:
    script = SETUP.render({})
    timer = script.index("systemctl enable --now tunesmith-dead-man.timer")
    for later in (
        "authorized_keys",
        "useradd",
        "apt-get update",
        'pip install --python "$home',
        "workers join",
    ):
        assert script.index(later) > timer


@pytest.mark.parametrize("name", ["host_id", "join_key", "ssh_user"])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_value_is_refused(name: str, hostile: str) -> None:
    with pytest.raises(ValueError, match=name):
        HostSetup(**(vars(SETUP) | {name: hostile}))


@QUICK
@given(st.from_regex(rf"\A{HostSetup.PATTERNS['requirement']}\Z"))
def test_any_requirement_that_is_accepted_is_one_value(requirement: str) -> None:
    setup = replace(SETUP, requirement=requirement)
    assert read_values(setup.render({}))[2] == requirement


@pytest.mark.parametrize(
    "requirement", ["-r /etc/passwd", "--extra-index-url=http://evil", "a\nb", "a$b", "a`b`"]
)
def test_a_requirement_that_is_an_option_or_a_command_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match="requirement"):
        replace(SETUP, requirement=requirement)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com:80",
        "https://127.0.0.1:8000",
        "http://127.0.0.1:8000/x",
        "http://a@127.0.0.1:1",
        "x",
    ],
)
def test_the_api_is_only_on_the_machines_loopback(url: str) -> None:
    with pytest.raises(ValueError, match="url must be"):
        replace(SETUP, url=url)


@pytest.mark.parametrize(
    "public_key", ["ssh-ed25519 AAAA", f"{KEY}\nssh-rsa {'A' * 60}", f'command="x" {KEY}', ""]
)
def test_the_key_of_the_tunnel_is_one_public_key(public_key: str) -> None:
    with pytest.raises(ValueError, match="public_key"):
        TunnelAccess(public_key, (8000,))


def test_the_key_of_the_tunnel_opens_forwards_and_nothing_else() -> None:
    line = TunnelAccess(KEY, (5432, 8000)).authorized_line
    assert line.startswith(
        'restrict,port-forwarding,permitlisten="127.0.0.1:5432",permitlisten="127.0.0.1:8000" '
    )


@pytest.mark.parametrize("name", CLOUD_SECRETS)
def test_a_key_of_a_cloud_account_cannot_be_part_of_user_data(name: str) -> None:
    with pytest.raises(AssertionError, match=name):
        SETUP.render({name: SETUP.join_key})
    assert "AKIAIOSFODNN7" not in SETUP.render({name: "AKIAIOSFODNN7EXAMPLE"})


def test_the_key_of_the_host_is_not_part_of_what_is_logged() -> None:
    assert SETUP.join_key not in repr(SETUP)
