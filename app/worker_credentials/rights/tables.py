"""The tables that a worker of another host may read and write.

Each table is in one of the lists; a test checks that. A column that is not named is readable.
"""

# Written by runs, deployments, the sweeper, and the events that they report.
WRITTEN = (
    "alias",
    "alias_traffic",
    "alias_version",
    "batch",
    "checkpoint",
    "comparison",
    "dataset",
    "deployment",
    "eval_run",
    "evaluation",
    "evaluation_score",
    "event",
    "file",
    "fine_tuning_checkpoint",
    "fine_tuning_job",
    "job",
    "model",
    "promotion",
    "run",
    "run_member",
    "token_use",
    "webhook_delivery",
    "worker",
)
DELETED_FROM = ("alias_traffic", "checkpoint", "promotion")
READ = (
    "alembic_version",
    "api_key",
    "cloud",
    "checkpoint_permission",
    "eval",
    "host",
    "job_host",
    "job_label",
    "rescue",
    "run_need",
    "storage_state",
    "webhook",
)
# Secrets, answers to clients, and what only the API needs.
HIDDEN = (
    "creation",
    "imported_eval_item",
    "stored_completion",
    "stored_response",
    "upload",
    "upload_part",
    "web_session",
    "worker_credential",
)
HIDDEN_COLUMNS = {
    "api_key": ("sha256",),
    "webhook": ("encrypted_secret", "encrypted_previous_secret"),
}
