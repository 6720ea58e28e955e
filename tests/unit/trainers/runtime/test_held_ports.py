"""A port that was chosen for a program goes to no other before that program listens."""

import socket
import sys

import pytest

from trainers.runtime.launch_command import HeldPort, NoFreePort, hold_port

HOST = "127.0.0.1"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, ports are not held")


def test_a_held_port_is_free_for_a_server_and_for_no_other_holder() -> None:
    with HeldPort(HOST) as held:
        with pytest.raises(OSError, match="in use"):
            HeldPort(HOST, held.number)
        with socket.create_server((HOST, held.number)) as server:
            assert server.getsockname()[1] == held.number
    HeldPort(HOST, held.number).release()


def test_two_runs_on_one_host_never_get_the_same_port_of_a_range() -> None:
    with HeldPort(HOST) as probe:
        ports = range(probe.number, probe.number + 1)
    with hold_port(HOST, ports) as first:
        assert first.number == probe.number
        with pytest.raises(NoFreePort, match="none of the 1 ports is free"):
            hold_port(HOST, ports)
