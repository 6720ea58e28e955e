"""The tables, one per file, each together with its enums."""

from app.tables.alias import Alias, AliasTraffic, AliasVersion, Promotion, PromotionStatus
from app.tables.checkpoint import Checkpoint
from app.tables.clients.api_key import ApiKey, Scope
from app.tables.clients.creation import CreationRecord
from app.tables.clients.token_use import TokenUse
from app.tables.clients.web_session import WebSession
from app.tables.clients.webhook import DeliveryStatus, Webhook, WebhookDelivery
from app.tables.clients.worker_credential import WorkerCredential
from app.tables.dataset import Dataset
from app.tables.deployment import Deployment, DeploymentStatus, current_status
from app.tables.evaluation import Comparison, Evaluation, EvaluationScore
from app.tables.event import Event, EventType
from app.tables.hosts.cloud import CloudState, JobHost
from app.tables.hosts.host import WANTED, Host, HostStatus, StopReason
from app.tables.job import Job, JobLabel
from app.tables.model import Model, ModelKind
from app.tables.openai_api.batch import Batch, BatchStatus
from app.tables.openai_api.eval import Eval, EvalRun, ImportedEvalItem
from app.tables.openai_api.file import File, FilePurpose
from app.tables.openai_api.fine_tuning import CheckpointPermission, FineTuningCheckpoint, FineTuningJob
from app.tables.openai_api.rescue import Rescue
from app.tables.openai_api.stored_completion import StoredCompletion, StoredResponse
from app.tables.openai_api.upload import Upload, UploadPart, UploadStatus
from app.tables.run import FINISHED, HELD, RequiredEnd, Run, RunMember, RunNeed, RunStatus, TrackingService
from app.tables.storage_state import STORAGE_STATE_ID, StorageState
from app.tables.worker import Worker

__all__ = [
    "FINISHED",
    "HELD",
    "STORAGE_STATE_ID",
    "WANTED",
    "Alias",
    "AliasTraffic",
    "AliasVersion",
    "ApiKey",
    "Batch",
    "BatchStatus",
    "Checkpoint",
    "CheckpointPermission",
    "CloudState",
    "Comparison",
    "CreationRecord",
    "Dataset",
    "DeliveryStatus",
    "Deployment",
    "DeploymentStatus",
    "Eval",
    "EvalRun",
    "Evaluation",
    "EvaluationScore",
    "Event",
    "EventType",
    "File",
    "FilePurpose",
    "FineTuningCheckpoint",
    "FineTuningJob",
    "Host",
    "HostStatus",
    "ImportedEvalItem",
    "Job",
    "JobHost",
    "JobLabel",
    "Model",
    "ModelKind",
    "Promotion",
    "PromotionStatus",
    "RequiredEnd",
    "Rescue",
    "Run",
    "RunMember",
    "RunNeed",
    "RunStatus",
    "Scope",
    "StopReason",
    "StorageState",
    "StoredCompletion",
    "StoredResponse",
    "TokenUse",
    "TrackingService",
    "Upload",
    "UploadPart",
    "UploadStatus",
    "WebSession",
    "Webhook",
    "WebhookDelivery",
    "Worker",
    "WorkerCredential",
    "current_status",
]
