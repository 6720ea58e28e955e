"""Encryption of the one kind of secret that must be stored: the signing secrets of webhooks.

The keys come from the settings or a file, never from the database. The embedded database has its file created
next to it. Fernet is AES-128-CBC with HMAC-SHA256; its first key encrypts, and each of them decrypts.
"""

import os
import tempfile
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from app.http.errors import Conflict
from app.settings import Settings
from app.settings.secret_files import warn_if_readable
from trainers.runtime.error_codes import ErrorCode

GENERATED_KEY_FILE = "encryption.key"
KEY_HINT = (
    "Set TUNESMITH_ENCRYPTION_KEY to the output of `openssl rand -base64 32`, or "
    "TUNESMITH_ENCRYPTION_KEY_FILE to a file with it, on each API process."
)


class EncryptionKeyMissing(Conflict):
    """No usable key is set with which the service could encrypt the secret."""

    code = ErrorCode.encryption_key_missing


class SecretUnreadable(Exception):
    """A stored secret was encrypted with another key."""


def encrypt(settings: Settings, secret: str) -> str:
    """Return a secret as it is stored; raises EncryptionKeyMissing."""
    return _load_cipher(settings, create=True).encrypt(secret.encode()).decode()


def decrypt(settings: Settings, stored: str) -> str:
    """Return a stored secret; raises EncryptionKeyMissing and SecretUnreadable."""
    try:
        return _load_cipher(settings, create=False).decrypt(stored).decode()
    except InvalidToken:
        raise SecretUnreadable(
            "The signing secret was encrypted with another key than TUNESMITH_ENCRYPTION_KEY is now. Add "
            "that key again, or rotate the secret."
        ) from None


def _load_cipher(settings: Settings, *, create: bool) -> MultiFernet:
    text = settings.encryption_key.get_secret_value() or _read_key_file(settings, create=create)
    try:
        # `openssl rand -base64` writes the other two characters.
        return MultiFernet([Fernet(key.translate(str.maketrans("+/", "-_"))) for key in text.split()])
    except ValueError:
        raise EncryptionKeyMissing(
            "The encryption key cannot be used: it must be 32 random bytes in base64, or several such keys "
            "separated by spaces.",
            hint=KEY_HINT,
        ) from None


def _read_key_file(settings: Settings, *, create: bool) -> str:
    named = settings.encryption_key_file
    path = named or settings.data_dir / GENERATED_KEY_FILE
    try:
        if named is None and create and settings.database_url.get_secret_value().startswith("sqlite"):
            _create_key_file(path)
        warn_if_readable("TUNESMITH_ENCRYPTION_KEY_FILE", path)
        return path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        if named is None:
            message = (
                "No encryption key is set, and the signing secret of a webhook is stored encrypted only."
            )
        else:
            message = f"The encryption key in {named} cannot be read: {error}."
        raise EncryptionKeyMissing(message, hint=KEY_HINT) from None


def _create_key_file(path: Path) -> None:
    """Write a new key unless the file exists; of two processes that do so at once, the first one wins."""
    if path.exists():
        return
    # mkstemp creates files that only their owner can read.
    handle, draft = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(Fernet.generate_key())
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        Path(draft).unlink()
