"""The authorities that a client of the control plane's API trusts."""

import ssl
from pathlib import Path


def create_trust(ca_file: Path | None) -> ssl.SSLContext | bool:
    """Return what verifies the API's certificate: the authority in a file alone, or the system's without one.

    Raises:
        ValueError: The file cannot be read, or contains no certificate.
    """
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except FileNotFoundError as error:
        raise ValueError(f"{ca_file} does not exist") from error
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{ca_file} contains no certificate in PEM that can be read") from error
