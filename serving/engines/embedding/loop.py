"""The embedding thread: batches of texts of similar length, from all requests that wait.

The text that has waited for longest is in the next batch, together with those nearest to it in length: so no
text waits for ever, and little is padding. A request that is cancelled leaves after the current batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty
from typing import Any

import torch

from serving.engines.embedding.model import EmbeddingModel, TokenizedText
from serving.engines.model_thread import IDLE_WAIT_SECONDS, ModelThread

# Tokens of a batch, padding included, unless one text alone has more. It bounds the memory of a batch, and
# the time after which a cancelled request leaves the device.
MAX_BATCH_TOKENS = 4096


@dataclass(eq=False)
class EmbeddingWork:
    """The texts of a request.

    Attributes:
        texts: The token ids of each.
        finish: Called in the embedding thread with the embeddings (b, d), in the order of the texts.
    """

    texts: list[TokenizedText]
    finish: Callable[[torch.Tensor], None]
    cancelled: bool = False
    rows: dict[int, torch.Tensor] = field(default_factory=dict)

    def add(self, index: int, embedding_d: torch.Tensor) -> None:
        """Store the embedding of a text, and finish with the last one."""
        self.rows[index] = embedding_d
        if len(self.rows) == len(self.texts):
            self.finish(torch.stack([self.rows[index] for index in range(len(self.texts))]))


@dataclass(frozen=True, eq=False)
class WaitingText:
    """A text of a request."""

    work: EmbeddingWork
    index: int

    @property
    def text(self) -> TokenizedText:
        """The text itself."""
        return self.work.texts[self.index]

    @property
    def n_tokens(self) -> int:
        """The number of its tokens."""
        return len(self.text.ids)


class EmbeddingLoop(ModelThread[EmbeddingModel]):
    """The thread that owns the embedding model; others use it through `submit`."""

    def __init__(self, load: Callable[[], EmbeddingModel], max_batch_size: int) -> None:
        super().__init__(load, "embedding")
        self.max_batch_size = max_batch_size
        self.waiting: list[WaitingText] = []
        self._running_count = 0

    def submit(self, work: EmbeddingWork) -> None:
        """Queue the texts of a request."""
        self.inbox.put(work)

    @property
    def running_count(self) -> int:
        """The number of texts in the current batch."""
        return self._running_count

    @property
    def waiting_count(self) -> int:
        """The number of texts that wait, counting a request that has just arrived as one."""
        return len(self.waiting) + self.inbox.qsize()

    def iterate(self, runner: EmbeddingModel) -> None:
        """Embed one batch."""
        self._read_inbox()
        self.waiting = [waiting for waiting in self.waiting if not waiting.work.cancelled]
        if not self.waiting:
            return
        batch = choose_batch(self.waiting, self.max_batch_size)
        chosen = set(batch)
        self.waiting = [waiting for waiting in self.waiting if waiting not in chosen]
        self._running_count = len(batch)
        embeddings_bd = runner.embed([waiting.text for waiting in batch])
        self._running_count = 0
        for waiting, embedding_d in zip(batch, embeddings_bd, strict=True):
            waiting.work.add(waiting.index, embedding_d)

    def _read_inbox(self) -> None:
        try:
            item: Any = self.inbox.get_nowait() if self.waiting else self.inbox.get(timeout=IDLE_WAIT_SECONDS)
            while True:
                if isinstance(item, EmbeddingWork):
                    self.waiting += [WaitingText(item, index) for index in range(len(item.texts))]
                item = self.inbox.get_nowait()
        except Empty:
            return


def choose_batch(waiting: list[WaitingText], max_batch_size: int) -> list[WaitingText]:
    """Return the first text and those nearest to it in length, within MAX_BATCH_TOKENS with the padding."""
    first = waiting[0]
    batch, longest = [first], first.n_tokens
    # Python's sort is stable: of equal lengths, those that have waited for longest come first.
    for other in sorted(waiting[1:], key=lambda one: abs(one.n_tokens - first.n_tokens)):
        longest = max(longest, other.n_tokens)
        if len(batch) == max_batch_size or longest * (len(batch) + 1) > MAX_BATCH_TOKENS:
            break
        batch.append(other)
    return batch
