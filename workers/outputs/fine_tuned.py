"""The output of a fine-tuning job for clients of the OpenAI API: models by name, and a file of results.

The files are published first. Then one transaction, that of the run's success, adds all rows: a client that
sees the job succeeded can request its models.
"""

import base64
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import update
from sqlmodel import Session, col, select

from app.deployments.create import build_deployment, insert_sleeping_deployment
from app.files.service import publish_content
from app.fine_tuning.metrics import StepMetrics, checkpoint_metrics, read_step_metrics, write_results
from app.fine_tuning.names import make_checkpoint_name
from app.settings import Settings
from app.storage.database import read_session
from app.storage.opening import get_store
from app.tables import Checkpoint, File, FilePurpose, FineTuningCheckpoint, FineTuningJob, Model, Run
from app.tables.base import new_id
from trainers.configs import DeploymentChoice, Queue
from trainers.modeling.quantization.record import QUANTIZED_BASE
from workers.runs.results import name_adapter_base

RESULTS = "step_metrics.csv"
# What an engine needs of a checkpoint; the rest is the state of the training.
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "*config.json", "chat_template*"),
    *("token*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json", QUANTIZED_BASE),
)


@dataclass(frozen=True)
class NamedModel:
    """A model of a fine-tuning job, after one of its steps."""

    step: int
    name: str
    model: Model


@dataclass(frozen=True)
class FineTunedOutput:
    """The rows that the success of a fine-tuning job adds besides its model."""

    job: FineTuningJob
    queue: Queue
    results: File
    steps: StepMetrics
    models: list[NamedModel]
    """Those of the checkpoints, and last the trained one."""

    def add_to(self, session: Session, settings: Settings) -> None:
        """Add the rows, with a sleeping deployment for each model, which its first request wakes."""
        session.add_all([self.results, *(named.model for named in self.models)])
        session.flush()
        choice = DeploymentChoice(**self.job.engine, idle_seconds=settings.fine_tuned_idle_seconds)
        suitable = choice.engine.suitable_queues
        queue = self.queue if self.queue in suitable else suitable[0]
        for named in self.models:
            session.add(
                FineTuningCheckpoint(
                    # The ids, by which they are listed, are in the order of the steps.
                    id=new_id("ftckpt"),
                    fine_tuning_job_id=self.job.id,
                    step=named.step,
                    name=named.name,
                    model_id=named.model.id,
                    metrics=checkpoint_metrics(self.steps, named.step),
                )
            )
            deployment = build_deployment(session, named.name, named.model.id, choice, queue)
            insert_sleeping_deployment(session, deployment)
        of_job = update(FineTuningJob).where(col(FineTuningJob.id) == self.job.id)
        session.execute(of_job.values(result_file_id=self.results.id))


def publish_fine_tuned(run: Run, run_dir: Path, model: Model | None) -> FineTunedOutput | None:
    """Publish the file of results and the models of the checkpoints; None for a run of another job."""
    with read_session() as session:
        job = session.exec(select(FineTuningJob).where(FineTuningJob.job_id == run.job_id)).one_or_none()
        if job is None or model is None:
            return None
        steps = read_step_metrics(session, run.id)
        last_step = max(steps, default=0)
        stored = session.exec(
            select(Checkpoint)
            .where(Checkpoint.run_id == run.id, col(Checkpoint.step) < last_step)
            .order_by(col(Checkpoint.step), col(Checkpoint.attempt))
        ).all()
    # The last attempt that saved a step decides.
    by_step = {checkpoint.step: checkpoint for checkpoint in stored}
    models = [
        NamedModel(
            step,
            make_checkpoint_name(job.fine_tuned_model, step),
            _publish_checkpoint(checkpoint, f"{run.full_name}-step-{step}", model, run_dir),
        )
        for step, checkpoint in by_step.items()
    ]
    models.append(NamedModel(last_step, job.fine_tuned_model, model))
    return FineTunedOutput(job, run.queue, _publish_results(steps), steps, models)


def _publish_results(steps: StepMetrics) -> File:
    """Publish the CSV in base64: so does OpenAI, and its users decode what they download."""
    text = io.StringIO()
    write_results(steps, text)
    with TemporaryDirectory() as folder:
        path = Path(folder) / RESULTS
        path.write_bytes(base64.b64encode(text.getvalue().encode()))
        artifact, sha256 = publish_content(path)
        size_bytes = path.stat().st_size
    return File(
        filename=RESULTS,
        purpose=FilePurpose.fine_tune_results,
        size_bytes=size_bytes,
        artifact=artifact,
        sha256=sha256,
    )


def _publish_checkpoint(checkpoint: Checkpoint, name: str, trained: Model, run_dir: Path) -> Model:
    """Publish the weights of a checkpoint as a model like the trained one, independent of the checkpoint."""
    model_id = new_id("model")
    source = get_store().fetch_folder(checkpoint.artifact, checkpoint.sha256)
    with _link_files([path for glob in MODEL_FILES for path in source.glob(glob)], run_dir) as folder:
        name_adapter_base(folder, trained.base)
        published = get_store().publish_folder(folder, f"models/{model_id}")
    return Model(
        **trained.model_dump(
            include={"kind", "base", "parent_id", "dataset_id", "run_id", "template_sha256"}
        ),
        id=model_id,
        name=name,
        artifact=published.key,
        sha256=published.sha256,
        size_bytes=published.size_bytes,
    )


@contextmanager
def _link_files(paths: Sequence[Path], parent: Path) -> Iterator[Path]:
    """Yield a folder with these files, as links where they are on the disk of its parent."""
    with TemporaryDirectory(dir=parent, prefix=".model-") as folder:
        for path in set(paths):
            target = Path(folder) / path.name
            try:
                os.link(path, target)
            except OSError:
                shutil.copyfile(path, target)
        yield Path(folder)
