"""A worker whose address is in a network of containers reports that other hosts do not reach it."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from app.settings import Settings
from workers.doctor import services
from workers.nodes.address import is_container_bridge


@pytest.mark.parametrize(
    ("other_end", "marks", "expected"),
    [
        ("12", [".dockerenv"], True),
        ("12", ["run/.containerenv"], True),
        ("2", [".dockerenv"], False),  # The host's network.
        ("12", [], False),  # A virtual machine, or a network namespace without a container.
        ("12", [".dockerenv", "var/run/secrets/kubernetes.io"], False),
    ],
)
def test_a_bridge_of_containers_is_recognized(
    other_end: str, marks: list[str], expected: bool, tmp_path: Path
) -> None:
    device = tmp_path / "sys" / "class" / "net" / "eth0"
    files = {device / "ifindex": "2\n", device / "iflink": f"{other_end}\n"}
    for path, text in (files | {tmp_path / mark: "" for mark in marks}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert is_container_bridge("eth0", tmp_path) is expected


def test_the_doctor_warns_of_it_unless_an_address_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(node_address="127.0.0.1", broker_url=SecretStr("redis://127.0.0.1:1/0"))
    monkeypatch.setattr(services, "is_container_bridge", lambda interface: True)
    assert services._check_node_address(settings).state == "ok"
    monkeypatch.setattr(services, "find_node_address", lambda settings: "127.0.0.1")
    found = services._check_node_address(settings.model_copy(update={"node_address": ""}))
    assert found.state == "warning" and "network_mode: host" in str(found.fix)
