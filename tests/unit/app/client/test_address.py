from pathlib import Path

import pytest

from app.client.address import LoginUnusable, find_address, store_login
from app.client.commands.service import describe_next_commands


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("TUNESMITH_API_KEY", raising=False)


def test_a_key_with_a_line_end_is_used_and_one_with_other_characters_is_not_shown() -> None:
    assert find_address("http://service", "secret\r\n").key == "secret"
    for key in ("secret\nX: y", "secret한"):
        with pytest.raises(LoginUnusable) as refused:
            find_address("http://service", key)
        assert "secret" not in str(refused.value)


def test_an_empty_key_is_none_although_one_is_stored() -> None:
    store_login("http://service", "stored")
    assert find_address("http://service").key == "stored"
    assert find_address("http://service", "").key is None


def test_an_address_that_cannot_be_used_is_named_without_its_password() -> None:
    for url in ("http://host:port", "ftp://host", "http://[::1"):
        with pytest.raises(LoginUnusable, match="cannot be used"):
            find_address(url)
    with pytest.raises(LoginUnusable) as refused:
        find_address("https://user:secret@host")
    assert "secret" not in str(refused.value)


def test_a_service_at_an_unusual_port_says_how_commands_elsewhere_find_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TUNESMITH_URL", raising=False)
    assert "tunesmith train FILE" in describe_next_commands("http://127.0.0.1:8000")
    assert "tunesmith --url http://127.0.0.1:8719 train" in describe_next_commands("http://127.0.0.1:8719")
    monkeypatch.setenv("TUNESMITH_URL", "http://127.0.0.1:8719/")
    assert "--url" not in describe_next_commands("http://127.0.0.1:8719")
