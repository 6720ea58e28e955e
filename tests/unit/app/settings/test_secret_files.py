"""Goal: a password needs to be in no environment. Method: settings read from files, and from broken ones."""

import os
import tempfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.scheduling.startup import load_settings
from app.settings import Settings, get_settings
from app.settings.secret_files import SecretFileUnusable
from trainers.runtime.redaction import redact


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def name_file(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    monkeypatch.setenv(f"{name}_FILE", str(folder / name))


def test_passwords_in_files_complete_the_urls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_file(monkeypatch, folder, "TUNESMITH_DATABASE_PASSWORD", "p@ss/word%\n")
    name_file(monkeypatch, folder, "TUNESMITH_BROKER_PASSWORD", "redis:secret\n")
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", "postgresql://tunesmith@postgres:5432/tunesmith")
    monkeypatch.setenv("TUNESMITH_BROKER_URL", "redis://redis:6379/0")
    settings = Settings()
    database = settings.database_url.get_secret_value()
    assert database == "postgresql://tunesmith:p%40ss%2Fword%25@postgres:5432/tunesmith"
    assert settings.broker_url.get_secret_value() == "redis://:redis%3Asecret@redis:6379/0"


def test_a_file_may_be_named_in_dotenv_and_its_value_is_redacted(folder: Path) -> None:
    (folder / "key").write_text("a value that nobody may read\n")
    (folder / ".env").write_text(f"TUNESMITH_OPENAI_API_KEY_FILE={folder / 'key'}\n")
    assert Settings().openai_api_key.get_secret_value() == "a value that nobody may read"
    assert redact("got a value that nobody may read") == "got ***"


def test_endpoints_with_their_keys_are_read_from_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints = '{"judge": {"url": "https://judge.example/v1", "api_key": "of a file"}}'
    name_file(monkeypatch, folder, "TUNESMITH_EVALUATION_ENDPOINTS", endpoints)
    assert Settings().evaluation_endpoints["judge"].api_key.get_secret_value() == "of a file"


@pytest.mark.parametrize(
    ("text", "variable", "reason"),
    [
        (None, None, "which cannot be read"),
        ("one", "another", "are both set"),
    ],
)
def test_an_unusable_file_is_reported_by_its_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, variable: str | None, reason: str
) -> None:
    name_file(monkeypatch, folder, "TUNESMITH_BROKER_PASSWORD", text or "")
    if text is None:
        (folder / "TUNESMITH_BROKER_PASSWORD").unlink()
    if variable:
        monkeypatch.setenv("TUNESMITH_BROKER_PASSWORD", variable)
    with pytest.raises(SecretFileUnusable, match=f"TUNESMITH_BROKER_PASSWORD_FILE.*{reason}"):
        Settings()


def test_an_empty_file_is_no_value(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_file(monkeypatch, folder, "TUNESMITH_OPENAI_API_KEY", "\n")
    assert Settings().openai_api_key.get_secret_value() == ""


def test_a_password_without_a_server_or_beside_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_DATABASE_PASSWORD", "hunter2")
    for url in ("", "postgresql://tunesmith:other@postgres/tunesmith"):
        monkeypatch.setenv("TUNESMITH_DATABASE_URL", url)
        with pytest.raises(ValidationError, match="contains no password"):
            Settings()


def test_the_id_of_a_key_for_the_store_needs_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_S3_ACCESS_KEY_ID", "tunesmith")
    with pytest.raises(ValidationError, match="s3_access_key_id needs s3_secret_access_key"):
        Settings()


@pytest.mark.parametrize("key", ["ts_short", "k" * 60, f"ts_{'k' * 40} "])
def test_a_first_key_that_could_be_guessed_or_misread_is_refused(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("TUNESMITH_FIRST_ADMIN_KEY", key)
    with pytest.raises(ValidationError, match="a key is `ts_`"):
        Settings()


def test_secrets_of_other_services_are_read_from_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_file(monkeypatch, folder, "HF_TOKEN", "hf_of_a_file\n")
    monkeypatch.setenv("HF_TOKEN", "")
    get_settings.cache_clear()
    load_settings()
    get_settings.cache_clear()
    assert os.environ["HF_TOKEN"] == "hf_of_a_file"


@pytest.mark.parametrize("text", ["first\nsecond\n", "first\r\nsecond", "first\x0bsecond", "# key\nsecret"])
@pytest.mark.parametrize("name", ["TUNESMITH_OPENAI_API_KEY", "LAMBDA_API_KEY"])
def test_a_secret_of_several_lines_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    name_file(monkeypatch, folder, name, text)
    with pytest.raises((SecretFileUnusable, SystemExit), match=f"{name}_FILE is .* which has 2 lines"):
        load_settings()


def test_endpoints_in_a_file_may_have_several_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoints = '{"judge": {\n"url": "https://judge.example/v1"}}\n'
    name_file(monkeypatch, folder, "TUNESMITH_EVALUATION_ENDPOINTS", endpoints)
    assert list(Settings().evaluation_endpoints) == ["judge"]


@pytest.mark.parametrize(
    ("file_mode", "folder_mode", "is_reported"),
    [(0o644, 0o755, True), (0o600, 0o755, False), (0o640, 0o755, False), (0o644, 0o700, False)],
)
def test_a_secret_that_other_users_can_read_is_reported_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    file_mode: int,
    folder_mode: int,
    is_reported: bool,
) -> None:
    # The temporary folders of tests are closed to others.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        name_file(monkeypatch, folder, "TUNESMITH_OPENAI_API_KEY", "a secret of one line")
        (folder / "TUNESMITH_OPENAI_API_KEY").chmod(file_mode)
        folder.chmod(folder_mode)
        Settings()
        Settings()
    assert caplog.text.count("which every user of this machine can read") == int(is_reported)
    assert "a secret of one line" not in caplog.text
