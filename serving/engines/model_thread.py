"""The thread of an engine's program that loads its model and alone touches it."""

import os
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

IDLE_WAIT_SECONDS = 1.0
# A step that takes this long means a hung device: /health must then stop returning 200.
STALLED_AFTER_SECONDS = 300.0
LOADING_FAILED = 3
LOOP_FAILED = 4

Model = TypeVar("Model")


class ModelThread(ABC, Generic[Model]):
    """A thread that serves requests one step after the other; others put items into its `inbox`."""

    def __init__(self, load: Callable[[], Model], name: str) -> None:
        self.load = load
        self.runner: Model | None = None
        """The loaded model."""
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.stopping = False
        self.last_iteration_at = time.monotonic()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def iterate(self, runner: Model) -> None:
        """Make one step; wait at most IDLE_WAIT_SECONDS for an item if there is nothing to do."""

    @property
    @abstractmethod
    def running_count(self) -> int:
        """The number of sequences that the model processes."""

    @property
    @abstractmethod
    def waiting_count(self) -> int:
        """The number of sequences that wait."""

    @property
    def healthy(self) -> bool:
        """Whether the model is loaded and the thread is neither dead nor stalled."""
        stalled = time.monotonic() - self.last_iteration_at >= STALLED_AFTER_SECONDS
        return self.runner is not None and self.thread.is_alive() and not stalled

    def stop(self) -> None:
        """End the loop after the current step."""
        self.stopping = True
        self.inbox.put(None)

    def _run(self) -> None:
        # A failure ends the whole process: a supervisor would not notice a dead thread behind a live server.
        try:
            self.runner = self.load()
        except Exception as error:
            # Loaders' messages have many lines.
            message = " ".join(str(error).split()) or type(error).__name__
            print(f"The model cannot be loaded: {message}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(LOADING_FAILED)
        try:
            with torch.inference_mode():
                while not self.stopping:
                    self.last_iteration_at = time.monotonic()
                    self.iterate(self.runner)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(LOOP_FAILED)
