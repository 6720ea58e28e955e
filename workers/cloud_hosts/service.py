"""The keepers of the clouds whose variables this worker has, each in a thread."""

import os
from collections.abc import Mapping

from app.retention.collector import load_installation_id
from app.scheduling.periodic import PeriodicThread
from app.settings import Settings
from app.tables import Host
from trainers.configs.clouds import CloudName
from workers.cloud_hosts.configured import find_clouds
from workers.cloud_hosts.context import KeeperContext
from workers.cloud_hosts.host_tunnels import CloudTunnels, tunnel_access
from workers.cloud_hosts.keeper import HostKeeper
from workers.clouds.clients import find_ssh_user, make_user_data, open_cloud
from workers.tunnels.forwards import API_PORT

JITTER = 0.1


class KeeperThread:
    """Sweeps the hosts of one cloud until it is stopped; a failure is a problem of the worker."""

    def __init__(self, cloud: CloudName, settings: Settings, worker_id: str) -> None:
        self._cloud = cloud
        self._settings = settings
        self._worker_id = worker_id
        self._keeper: HostKeeper | None = None
        self._thread = PeriodicThread(
            f"keeper of {cloud}",
            self._sweep,
            settings.host_sweep_seconds,
            max_seconds=settings.host_sweep_seconds,
            jitter=JITTER,
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current sweep, and let another worker keep the cloud."""
        self._thread.stop()
        if self._keeper is not None:
            self._keeper.leave()

    def _sweep(self) -> None:
        # What is missing, such as a package, is a problem that the next sweep finds again.
        if self._keeper is None:
            self._keeper = HostKeeper(make_context(self._cloud, self._settings, os.environ), self._worker_id)
        self._keeper.sweep()


def create_keepers(settings: Settings, worker_id: str) -> list[KeeperThread]:
    """Create a thread for each cloud in which this worker can launch hosts."""
    return [KeeperThread(cloud, settings, worker_id) for cloud in find_clouds(settings, os.environ)]


def make_context(cloud: CloudName, settings: Settings, environment: Mapping[str, str]) -> KeeperContext:
    """Return what the keeper of a cloud works with; raises CloudError if a variable is missing."""

    def make(host: Host, secret: str) -> str:
        return make_user_data(
            settings,
            environment,
            cloud=cloud,
            host_id=host.id,
            join_key=secret,
            spot=host.spot,
            tunnel=tunnel_access(settings),
            api_port=API_PORT,
        )

    return KeeperContext(
        cloud=open_cloud(cloud, settings, environment),
        installation=load_installation_id(),
        settings=settings,
        tunnels=CloudTunnels(settings, find_ssh_user(cloud, environment)),
        make_user_data=make,
    )
