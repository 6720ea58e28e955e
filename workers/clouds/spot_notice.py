"""A program on a spot machine at AWS: it stops the worker when the notice of an interruption arrives.

The worker then saves checkpoints and releases its runs, which resume elsewhere. AWS gives two minutes:
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

import logging
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable

METADATA_URL = "http://169.254.169.254"
# The variable with which AWS's own tools are pointed at another address.
METADATA_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
POLL_SECONDS = 5.0
TIMEOUT_SECONDS = 3.0
UNIT = "tunesmith-worker.service"

logger = logging.getLogger(__name__)


def has_notice(url: str = METADATA_URL) -> bool:
    """Return whether the machine will be taken back; False as well if the metadata do not respond."""
    token = _request(f"{url}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    if token is None:
        return False
    path = f"{url}/latest/meta-data/spot/instance-action"
    return _request(path, {"X-aws-ec2-metadata-token": token}) is not None


def stop_worker() -> None:
    """Stop the worker's unit, which waits until the worker has left."""
    subprocess.run(["systemctl", "stop", UNIT], check=True)


def watch(
    find_notice: Callable[[], bool] = has_notice,
    stop: Callable[[], None] = stop_worker,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return after a notice has arrived and the worker has stopped."""
    while not find_notice():
        sleep(POLL_SECONDS)
    logger.warning("The cloud takes this machine back: the worker saves its runs and leaves.")
    stop()


def _request(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """Return the text of a response, or None if it is an error or does not arrive."""
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310 — http only
    # The metadata are on the link; a proxy of the environment must not see the token.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            return str(response.read(4096).decode("utf-8", "replace"))
    except (urllib.error.URLError, OSError):
        return None


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    address = os.environ.get(METADATA_VARIABLE, METADATA_URL).rstrip("/")
    watch(lambda: has_notice(address))
