"""The Python client and the command line: HTTP and configs, without a part of the service.

    from tunesmith import Client

    client = Client()
    dataset = client.datasets.push("mine.jsonl")
    job = client.jobs.create(stages=[{"stage": "sft", "base": "starter", "dataset": dataset.name}])
    job.wait()
    job.runs[0].curve().plot(x="step", y="loss")

The import name `tunesmith` is this package's public part.
"""

from app.client.address import ServiceAddress
from app.client.api.errors import (
    AccessRefused,
    ClientError,
    DeploymentFailed,
    DownloadDamaged,
    GateRefused,
    JobCancelled,
    JobFailed,
    ObjectMissing,
    RequestConflict,
    RequestInvalid,
    RequestRefused,
    ServerUnreachable,
    ServiceFailure,
    WaitInterrupted,
    WaitTimeout,
    WorkFailed,
)
from app.client.clients import AsyncClient, Client
from app.client.views.datasets import DataFault, DataReport, RemoteDataset
from app.client.views.evaluations import (
    DifferenceRecord,
    RemoteComparison,
    RemoteEvaluation,
    ResultRecord,
    ScoreRecord,
)
from app.client.views.jobs import JobEvent, JobPlan, JobSummary, RemoteJob
from app.client.views.models import RemoteDeployment, RemoteModel
from app.client.views.runs import CurvePoint, RemoteRun

__all__ = [
    "AccessRefused",
    "AsyncClient",
    "Client",
    "ClientError",
    "CurvePoint",
    "DataFault",
    "DataReport",
    "DeploymentFailed",
    "DifferenceRecord",
    "DownloadDamaged",
    "GateRefused",
    "JobCancelled",
    "JobEvent",
    "JobFailed",
    "JobPlan",
    "JobSummary",
    "ObjectMissing",
    "RemoteComparison",
    "RemoteDataset",
    "RemoteDeployment",
    "RemoteEvaluation",
    "RemoteJob",
    "RemoteModel",
    "RemoteRun",
    "RequestConflict",
    "RequestInvalid",
    "RequestRefused",
    "ResultRecord",
    "ScoreRecord",
    "ServerUnreachable",
    "ServiceAddress",
    "ServiceFailure",
    "WaitInterrupted",
    "WaitTimeout",
    "WorkFailed",
]
