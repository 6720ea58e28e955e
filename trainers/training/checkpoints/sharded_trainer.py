"""A Trainer whose checkpoints are written as shards where its weights are sharded."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.trainer import SCHEDULER_NAME

from trainers.training.checkpoints.shards import ShardWriter, has_shards, load_optimizer, load_weights


class ShardedCheckpointMixin:
    """A Trainer that saves full tuning under FSDP2 as shards, and loads them with any number of processes.

    transformers would write all weights twice, on the first process, while the others wait. Adapters are
    small, and saved as transformers does.
    """

    args: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    processing_class: Any
    shard_writer: ShardWriter | None = None

    def prepare_shards(self, group: Any) -> None:
        """Create the writer, unless the run trains an adapter; `group` contains all processes."""
        if not isinstance(self.model, PeftModel):
            self.shard_writer = ShardWriter(group)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model's files; of a checkpoint in shards, those without weights."""
        if self.shard_writer is None or not _internal_call:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        elif self.args.should_save:
            # FSDP2 replaces the class of the model by one of its own.
            self.model.config.architectures = [type(self.model).__name__.removeprefix("FSDP")]
            self.model.config.save_pretrained(output_dir)
            if self.model.can_generate():
                self.model.generation_config.save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.shard_writer is None:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        self.shard_writer.start(Path(output_dir), self.model, self.optimizer)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        if has_shards(checkpoint):
            load_weights(checkpoint, self.model if model is None else model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not has_shards(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        load_optimizer(Path(checkpoint), self.model, self.optimizer)
        state = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        self.lr_scheduler.load_state_dict(state)
