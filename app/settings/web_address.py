"""Addresses of services that the operator names."""

from typing import Annotated

from pydantic import AfterValidator


def _check_web_address(url: str) -> str:
    """Reject credentials: the API shows these addresses to every key with the scope `read`."""
    if url and not url.startswith(("http://", "https://")):
        raise ValueError("the address must begin with http:// or https://")
    if "@" in url:
        raise ValueError(
            "the address must not contain credentials: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, on the workers; an endpoint has `api_key`"
        )
    return url.rstrip("/")


WebAddress = Annotated[str, AfterValidator(_check_web_address)]
