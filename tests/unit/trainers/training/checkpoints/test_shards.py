"""Goal: a checkpoint in shards that cannot be written fails with an error that the run reports."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed

from trainers.training.checkpoints.shards import OPTIMIZER, ShardWriter


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_what_stops_the_thread_is_an_exception_of_the_next_step(tmp_path: Path) -> None:
    (tmp_path / OPTIMIZER).write_text("A file in the way of the folder.")
    model = torch.nn.Linear(2, 2)
    writer = ShardWriter(distributed.group.WORLD)
    writer.start(tmp_path, model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(OSError, match=OPTIMIZER):
        writer.wait()
    writer.check()
