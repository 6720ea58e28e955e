"""Hosts with GPUs and without, runs that wait for them, and machines of a cloud, for the tests of pages."""

from datetime import timedelta
from typing import Any

from app.hosts.offers import capability_of
from app.storage.database import transaction
from app.tables import CloudState, Host, HostStatus, Job, Run, RunStatus, StopReason, Worker
from app.tables.base import new_id, utc_now
from trainers.configs import Queue, StageKind, parse_stage
from trainers.configs.clouds.offers import CloudName, Offer, PriceSource

GIB = 1 << 30
CONFIG = {"stage": "sft", "base": "starter", "dataset": "train"}
PRICES = {"gpu_1x_a10": 0.75, "gpu_8x_h100_sxm5": 23.92}


def add_worker(name: str, host: str, queues: list[Queue], n_gpus: int = 0, **values: Any) -> str:
    """Insert a worker, by default one that is alive, and return its id."""
    gpus = [
        {
            "name": "NVIDIA H200",
            "uuid": f"GPU-{host}-{n}",
            "memory_bytes": 141 * GIB,
            "used_bytes": (20 + 14 * n) * GIB,
            "use_percent": 12 * n,
        }
        for n in range(n_gpus)
    ]
    common: dict[str, Any] = {
        "stages": [stage.value for stage in StageKind],
        "capabilities": ["vllm", "gguf"],
        "slots": {queue: n_gpus if queue is Queue.cuda else 2 for queue in queues},
        "hardware": {
            "cpus": 64,
            "memory_bytes": 503 * GIB,
            "gpus": gpus,
            "unused": None,
            "data_disk_free_bytes": 812 * GIB,
        },
        "versions": {"python": "3.11.9", "torch": "2.13.0", "trl": "1.16.0"},
        # Alive until a test has ended.
        "last_seen_at": utc_now() + timedelta(hours=1),
        "started_at": utc_now() - timedelta(hours=30),
    }
    with transaction() as session:
        worker = Worker(name=name, host=host, pid=4711, queues=list(queues), **common | values)
        session.add(worker)
        session.flush()
        return worker.id


def add_run(name: str, queue: Queue, status: RunStatus = RunStatus.queued, **values: Any) -> str:
    """Insert a job of one run and return the id of the run."""
    with transaction() as session:
        job = Job(name=name)
        session.add(job)
        session.flush()
        config = parse_stage(CONFIG).model_dump(mode="json")
        common: dict[str, Any] = {"position": 0, "name": "sft", "stage": StageKind.sft}
        common["full_name"] = f"{name}-sft"
        run = Run(job_id=job.id, queue=queue, status=status, config=config, **common | values)
        session.add(run)
        session.flush()
        return run.id


def add_cloud_host(**values: Any) -> str:
    """Insert a machine of a cloud, by default one that is ready, and return its id."""
    at = utc_now()
    common: dict[str, Any] = {
        "cloud": CloudName.lambda_cloud,
        "type": "gpu_8x_h100_sxm5",
        "region": "us-west-1",
        "gpu_name": "H100",
        "gpu_count": 8,
        "usd_per_hour": 23.92,
        "max_usd": 120.0,
        "idle_seconds": 900,
        "status": HostStatus.ready,
        "launched_at": at - timedelta(hours=2, minutes=12),
        "ready_at": at - timedelta(hours=2),
        "last_busy_at": at - timedelta(minutes=4),
    }
    with transaction() as session:
        host = Host(id=new_id("host"), **common | values)
        session.add(host)
        session.flush()
        return host.id


def add_many_hosts(count: int) -> None:
    """Insert as many workers, of which 20 are alive, runs that wait, and machines that have ended."""
    for number in range(count):
        seen = {} if number >= count - 20 else {"last_seen_at": utc_now() - timedelta(days=1)}
        add_worker(f"w{number}", f"h{number}.lab", [Queue.cuda], 1, **seen)
        add_run(f"many-{number}", Queue.cuda, device_count=4)
        add_cloud_host(status=HostStatus.terminated)


def add_cloud() -> None:
    """Insert a cloud whose keys a live worker holds, with its offers."""
    offers = [
        Offer(
            cloud=CloudName.lambda_cloud,
            type=type,
            region="us-west-1",
            gpu_name=type.split("_")[2].upper(),
            gpu_count=int(type[4]),
            usd_per_hour=price,
            price_source=PriceSource.cloud,
            price_date=utc_now(),
        )
        for type, price in PRICES.items()
    ]
    worker = add_worker(
        "control", "control.lab", [Queue.cpu], capabilities=[capability_of(CloudName.lambda_cloud)]
    )
    with transaction() as session:
        session.add(
            CloudState(
                name=CloudName.lambda_cloud,
                worker_id=worker,
                lease_expires_at=utc_now() + timedelta(hours=1),
                offers=[offer.model_dump(mode="json") for offer in offers],
                offers_at=utc_now(),
            )
        )


def add_shown_hosts() -> dict[str, str]:
    """Insert hosts in several states, with runs that work and wait, and return the ids by name."""
    ids = {"gpu": add_worker("gpu-a", "gpu-a.lab", [Queue.cuda], 8)}
    ids["lost"] = add_worker(
        "gpu-b", "gpu-b.lab", [Queue.cuda], 2, last_seen_at=utc_now() - timedelta(minutes=26)
    )
    ids["stopped"] = add_worker("old", "old.lab", [Queue.cpu], stopped_at=utc_now() - timedelta(days=2))
    ids["ill"] = add_worker(
        "mac", "mac-studio.lab", [Queue.mlx, Queue.cpu], problems=["connection to the broker: refused"]
    )
    for name, n in (("translate-large", 6), ("maths-grpo", 2)):
        values = {"worker_id": ids["gpu"], "device_count": n, "step": 180 * n, "total_steps": 1600}
        ids[name] = add_run(name, Queue.cuda, RunStatus.running, **values)
    for n in range(5):
        ids[f"waiting-{n}"] = add_run(f"waiting-{n}", Queue.cuda, priority=int(n == 4), device_count=4)
    return ids


def add_shown_cloud_hosts() -> dict[str, str]:
    """Insert a cloud with machines in several states, and return the ids by name; they lock the service."""
    add_cloud()
    error = {"code": "host_unavailable", "message": "The cloud has no capacity for gpu_1x_a10 in us-east-1."}
    ids = {"ready": add_cloud_host()}
    values = {"type": "gpu_1x_a10", "gpu_name": "A10", "gpu_count": 1, "usd_per_hour": 0.75, "max_usd": 5.0}
    ids["launching"] = add_cloud_host(
        **values, status=HostStatus.launching, launched_at=None, ready_at=None, problem=error
    )
    ids["ended"] = add_cloud_host(
        **values,
        status=HostStatus.terminated,
        stop_reason=StopReason.idle,
        spend_usd=1.88,
        ended_at=utc_now() - timedelta(minutes=1),
    )
    return ids
