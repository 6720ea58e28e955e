"""The published list of error codes. Each code is written here once; the documentation is made from it."""

from enum import StrEnum
from typing import Self


class ErrorCode(StrEnum):
    """The reason of a failure, for programs to branch on.

    Runs, the API and the gateway share this list. `infrastructure` marks a failure of the machine rather than
    of the job: the run is retried.
    """

    description: str
    infrastructure: bool

    def __new__(cls, value: str, description: str = "", infrastructure: bool = False) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.description = description
        member.infrastructure = infrastructure
        return member

    # Runs: written by programs into `error.json`.
    config_invalid = "config_invalid", "A field of the stage's config is missing or has an invalid value."
    model_not_found = "model_not_found", "The model does not exist, or this worker is not allowed to read it."
    model_refused = "model_refused", "A file of the model could run code, leads elsewhere, or is damaged."
    model_unsupported = (
        "model_unsupported",
        "The architecture, tokenizer or adapter of the model cannot be used by the stage.",
    )
    adapter_unreadable = "adapter_unreadable", "The adapter's files are incomplete or do not fit its base."
    teacher_mismatch = "teacher_mismatch", "The teacher of a distillation has other tokens than the student."
    dataset_not_found = "dataset_not_found", "The dataset does not exist."
    batch_invalid = "batch_invalid", "The input file of a batch has faults, which the batch lists."
    dataset_invalid = "dataset_invalid", "A row of the dataset cannot be used by the stage."
    template_missing = "template_missing", "The model has no chat template, and a row is a conversation."
    template_unsuitable = "template_unsuitable", "The tokenizer lacks the tokens of the chosen template."
    template_too_slow = "template_too_slow", "The chat template renders for longer than the limit of time."
    template_too_large = (
        "template_too_large",
        "The chat template exceeds the limit of memory or of its output.",
    )
    template_unsafe = "template_unsafe", "The chat template tries to leave its sandbox."
    template_invalid = "template_invalid", "The chat template has a syntax error, or rejects every chat."
    device_unavailable = "device_unavailable", "The stage asks for a device that this worker does not have."
    out_of_memory = "out_of_memory", "The device's memory is too small for the smallest micro-batch."
    disk_full = "disk_full", "The disk of the data directory, the database or the artifact store is full."
    checkpoint_unsupported = (
        "checkpoint_unsupported",
        "The run cannot resume: another version or backend wrote its checkpoint, in a form of its own.",
    )
    weights_unchanged = "weights_unchanged", "Training ended and has changed no weight of the model."
    loss_not_finite = "loss_not_finite", "The loss became NaN or infinite."
    preflight_failed = "preflight_failed", "A check before training found an error in the data or settings."
    later_stage_invalid = (
        "later_stage_invalid",
        "A later stage of the job would fail, as a check before the first one trains has found.",
    )
    evaluation_not_found = "evaluation_not_found", "There is no evaluation with this id."
    evaluations_differ = "evaluations_differ", "The evaluations have no rows or no metrics in common."
    merge_differs = "merge_differs", "The merged model does not respond as the adapter on its base does."
    export_failed = "export_failed", "The model cannot be converted to the format."
    export_differs = "export_differs", "The exported file does not compute what the trained model does."
    hub_push_refused = "hub_push_refused", "The model may not be uploaded to the hub."
    every_request_rejected = (
        "every_request_rejected",
        "The engine rejected the request of every row, so that there is nothing to score.",
    )
    judge_failed = "judge_failed", "The judge model of a metric gave no verdict on too many rows."
    metric_failed = "metric_failed", "A program that computes a metric failed or exceeded its limits."
    capability_missing = "capability_missing", "The worker lacks a program that the stage needs."
    engine_failed = "engine_failed", "The engine stopped or did not start.", True
    rank_lost = "rank_lost", "One of the run's processes died, or stopped responding to the others.", True
    internal_error = "internal_error", "A fault of Tunesmith. The log contains the traceback."

    # Runs: written by workers and by the sweeper.
    program_killed = "program_killed", "A signal from outside ended the program.", True
    program_without_result = "program_without_result", "The program ended without a result or an error.", True
    time_limit = "time_limit", "The program ran for longer than a limit of its stage allows."
    memory_limit = "memory_limit", "The program used more memory than a limit of its stage allows."
    disk_limit = "disk_limit", "The run directory grew larger than a limit of its stage allows."
    artifacts_unreachable = "artifacts_unreachable", "The artifact store cannot be read or written.", True
    hub_unreachable = "hub_unreachable", "The model hub does not respond.", True
    artifact_corrupt = "artifact_corrupt", "A stored file is missing or differs from its published hash."
    worker_failed = "worker_failed", "The worker raised an exception. Its own log has the traceback.", True
    node_lost = "node_lost", "A host of a run on several hosts stopped sending its heartbeat.", True
    lease_lost = "lease_lost", "The worker stopped renewing its lease.", True
    deployment_failed = "deployment_failed", "The deployment that the stage created failed."
    parity_failed = "parity_failed", "The engine's responses differ from those of the trained model."
    earlier_stage_ended = "earlier_stage_ended", "A stage that this one needs failed or was cancelled."
    sweep_failed = "sweep_failed", "No run of a sweep has a validation loss. The message contains the errors."
    openai_refused = (
        "openai_refused",
        "OpenAI refuses the key, the model or the account's quota. The message is OpenAI's.",
    )
    openai_unavailable = "openai_unavailable", "OpenAI does not respond, or only with errors.", True
    cost_limit_reached = "cost_limit_reached", "The next request to OpenAI could exceed `max_cost`."
    gate_not_met = "gate_not_met", "The condition of a gate is not met. The message contains the values."
    skipped_by_gate = "skipped_by_gate", "The outcome of a gate excludes the stage, which has not run."

    promotion_rolled_back = (
        "promotion_rolled_back",
        "A condition of a promotion did not hold. The message contains condition, value, bound and count.",
    )
    promotion_stopped = (
        "promotion_stopped",
        "A condition of a promotion did not hold, and the alias keeps its share as `on_failure` says.",
    )
    promotion_undecided = (
        "promotion_undecided",
        "A step of a promotion had too few requests for a decision in its longest time.",
    )
    promotion_impossible = (
        "promotion_impossible",
        "The alias or the deployment is not in a state that allows the promotion.",
    )
    host_unavailable = (
        "host_unavailable",
        "The cloud host that the job asked for cannot be launched, or did not become ready.",
    )
    host_budget_used = "host_budget_used", "The hosts of the job have cost `max_usd`, and it has not ended."
    alias_moved = "alias_moved", "Somebody else changed the alias during its promotion."

    # The API and the gateway.
    bad_request = "bad_request", "The request cannot be carried out."
    invalid = "invalid", "The payload is malformed; `fields` names each invalid field."
    unauthorized = "unauthorized", "The request has no API key, or one that is unknown."
    forbidden = "forbidden", "The API key lacks the scope that the request needs."
    not_found = "not_found", "There is no such route or object."
    method_not_allowed = "method_not_allowed", "The route exists, but not for this method."
    conflict = "conflict", "The object is not in a state that allows the request."
    too_large = "too_large", "The body is larger than the service accepts."
    database_unavailable = "database_unavailable", "The database is away, locked or cannot be written."
    http_error = "http_error", "The HTTP request could not be handled."
    not_multipart = "not_multipart", "An upload must be multipart/form-data."
    job_not_found = "job_not_found", "There is no job with this id."
    run_not_found = "run_not_found", "There is no run with this id."
    file_not_published = "file_not_published", "The run has not published this file."
    model_form_missing = "model_form_missing", "The model does not exist in the requested form."
    range_not_satisfiable = "range_not_satisfiable", "The range begins after the end of the file."
    too_many_downloads = "too_many_downloads", "The process is sending as many downloads as it may."
    graders_busy = "graders_busy", "The process is running as many graders as it may."
    batch_not_found = "batch_not_found", "There is no batch with this id."
    batch_finished = "batch_finished", "The batch has ended, so it cannot be cancelled."
    comparison_not_found = "comparison_not_found", "There is no comparison with this id."
    deployment_not_found = "deployment_not_found", "There is no deployment with this id or name."
    alias_not_found = "alias_not_found", "There is no alias with this name."
    key_not_found = "key_not_found", "There is no API key with this id."
    preset_not_found = "preset_not_found", "There is no preset with this name."
    job_status_conflict = "job_status_conflict", "The job's status does not allow this action."
    idempotency_key_reused = "idempotency_key_reused", "The idempotency key was used with another payload."
    creation_superseded = (
        "creation_superseded",
        "The client has sent the request again, and the repetition has created the object.",
    )
    dataset_not_ready = "dataset_not_ready", "The dataset's validation found errors, or has not ended."
    nothing_to_check = "nothing_to_check", "The job has no training stage to check."
    first_key_not_confirmed = (
        "first_key_not_confirmed",
        "Creating the first API key locks the service, so the request must confirm it.",
    )
    first_key_must_be_admin = "first_key_must_be_admin", "The first API key needs the scope `admin`."
    in_use = "in_use", "Other objects still use the object; `used_by` contains their ids."
    input_deleted = "input_deleted", "A dataset, model or evaluation that the job reads has been deleted."
    worker_alive = "worker_alive", "The worker is alive, so its record cannot be deleted."
    deployment_live = "deployment_live", "The deployment has not ended, so its record cannot be deleted."
    deployment_has_alias = "deployment_has_alias", "An alias routes to this deployment."
    name_is_alias = "name_is_alias", "The name belongs to an alias."
    name_is_deployment = "name_is_deployment", "The name belongs to a deployment."
    target_not_ready = "target_not_ready", "The alias's target is not a deployment that is ready."
    rescue_not_found = "rescue_not_found", "There is no rescue with this id."
    rescue_not_ready = "rescue_not_ready", "The rescue is not in a state that allows the request."
    openai_key_missing = "openai_key_missing", "This process has no `OPENAI_API_KEY`."
    webhook_not_found = "webhook_not_found", "There is no webhook with this id."
    delivery_not_found = "delivery_not_found", "The webhook has no delivery with this id."
    webhook_disabled = "webhook_disabled", "The webhook is disabled, so that nothing is sent to it."
    webhook_unreachable = "webhook_unreachable", "The receiver of a test event could not be reached."
    too_many_webhooks = "too_many_webhooks", "The service has as many webhooks as it allows."
    encryption_key_missing = (
        "encryption_key_missing",
        "No usable key is set with which the service could encrypt the secret.",
    )
    host_out_of_reach = (
        "host_out_of_reach",
        "The keys of the cloud are of another account or region than those that launched the host.",
    )
    host_in_reach = (
        "host_in_reach",
        "The keys of the cloud reach the host: nothing is to be settled.",
    )
    cloud_not_held = "cloud_not_held", "The cloud is not held after a restoration, so nothing is taken over."
    host_not_found = "host_not_found", "There is no cloud host with this id."
    hosts_need_keys = "hosts_need_keys", "A cloud host needs an API key, and the service has none yet."
    cloud_unattended = "cloud_unattended", "No live worker holds the keys of the cloud."
    too_many_hosts = "too_many_hosts", "The service has as many cloud hosts as it allows."
    worker_key_needed = (
        "worker_key_needed",
        "A host stores its API key, which must have the scope `worker` and no other.",
    )
    too_many_joined_hosts = (
        "too_many_joined_hosts",
        "As many hosts have joined, in all or with this API key, as the service allows.",
    )
    nothing_to_restore = "nothing_to_restore", "The alias has no earlier target."

    # The gateway and our engines, in OpenAI's shape.
    invalid_request = "invalid_request", "A parameter of the request is invalid."
    context_length_exceeded = (
        "context_length_exceeded",
        "The prompt leaves no room for a completion in the model's context.",
    )
    max_tokens_too_large = "max_tokens_too_large", "The prompt leaves less room than the request asks for."
    generation_failed = "generation_failed", "A completion cannot be continued within its grammar."
    request_too_large = "request_too_large", "The request's body is larger than the limit."
    invalid_api_key = "invalid_api_key", "The request has no API key, or one that is not valid."
    malformed_request = "malformed_request", "The bytes are not a valid HTTP/1.1 request."
    headers_too_large = "headers_too_large", "The request line and headers are larger than the limit."
    cross_site_request = "cross_site_request", "A web page of another origin sent the request."
    too_many_connections = "too_many_connections", "The server has too many open connections."
    unsupported_encoding = "unsupported_encoding", "The body has a Content-Encoding other than gzip."
    request_timeout = "request_timeout", "The request did not arrive in time."
    artifact_not_found = "artifact_not_found", "Nothing is published under this key of the artifact store."
    artifact_exists = "artifact_exists", "Another artifact is published under the key, and is not replaced."
    upload_offset_differs = (
        "upload_offset_differs",
        "The bytes of an artifact do not follow those that have arrived.",
    )
    upload_busy = "upload_busy", "Another request is sending the same content of an artifact."
    upload_hash_differs = "upload_hash_differs", "The bytes of an artifact that arrived have another hash."
    upload_missing = "upload_missing", "A file of the artifact has not arrived, so it is not published."
    too_many_uploads = "too_many_uploads", "As many uploads of artifacts are in progress as allowed."
    upload_quota_reached = (
        "upload_quota_reached",
        "The API key has sent as much that is not published as it may.",
    )
    upload_not_found = "upload_not_found", "There is no upload with this id."
    upload_not_pending = "upload_not_pending", "The upload was completed or cancelled, or has expired."
    eval_not_found = "eval_not_found", "There is no eval, run of it or output item with this id."
    file_not_found = "file_not_found", "The file does not exist, or has expired."
    stored_completion_not_found = (
        "stored_completion_not_found",
        "No chat completion with this id is stored for the API key.",
    )
    stored_response_not_found = (
        "stored_response_not_found",
        "No response with this id is stored for the API key.",
    )
    previous_response_not_found = (
        "previous_response_not_found",
        "The response to continue is not stored for the API key, or has expired.",
    )
    not_offered = "not_offered", "A method of OpenAI's API that this service does not have."
    unknown_parameter = "unknown_parameter", "The request has a parameter that does not exist."
    task_not_served = (
        "task_not_served",
        "The model computes embeddings and the request asks for a text, or the other way round.",
    )
    unknown_url = "unknown_url", "Nothing is served at this path."
    rate_limit_exceeded = "rate_limit_exceeded", "The API key has used its requests of the minute."
    concurrency_limit_exceeded = "concurrency_limit_exceeded", "The API key has too many open requests."
    insufficient_quota = "insufficient_quota", "The API key has used its tokens of the day."
    model_not_allowed = "model_not_allowed", "The API key may not use the model."
    engine_unavailable = "engine_unavailable", "No engine can take the request now."
    engine_error = "engine_error", "The engine failed, or refused the request, without an error object."
    engine_disconnected = "engine_disconnected", "The engine closed the connection in mid-response."
    response_too_large = "response_too_large", "The engine's response is larger than the gateway buffers."
    engine_timeout = "engine_timeout", "The engine sent nothing for too long."
    host_needs_servers = "host_needs_servers", "Another host needs PostgreSQL and Redis to join."
    worker_version_mismatch = (
        "worker_version_mismatch",
        "The host has another version of Tunesmith than the control plane.",
    )
    credential_not_found = "credential_not_found", "There are no credentials of a worker with this id."
