"""The generation thread: takes answers in between steps, decodes them together, and dies loudly.

Each turn: obey orders, admit waiting rows up to the batch size, prefill them, then one decoding step for
every block. Rows with the same adapter share a block; blocks take turns.
"""

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

import torch

from serving.engines.decoding.adapters import AdapterNotLoadable
from serving.engines.decoding.base import DecodeBatch, ModelRunner
from serving.engines.decoding.sampling import prompt_logprobs, token_logprob
from serving.engines.decoding.sequence import SequenceState
from serving.engines.decoding.served import ServedModel

IDLE_WAIT_SECONDS = 1.0
# One step that takes this long is a hung device, and /health must stop answering 200.
STALLED_AFTER_SECONDS = 300.0
# Prompts read in one turn, padding included: bounds the pause of those that are decoding.
PREFILL_TOKENS = 4096
LOADING_FAILED = 3
LOOP_FAILED = 4

Order = tuple[Callable[[ModelRunner], Any], Future[Any], ServedModel | None]


class GenerationLoop:
    """The thread that owns the model; everything else talks to it through `submit` and `order`."""

    def __init__(self, load: Callable[[], ModelRunner], max_batch_size: int) -> None:
        self.load = load
        self.max_batch_size = max_batch_size
        self.base: ModelRunner | None = None
        self.inbox: SimpleQueue[SequenceState | Order | None] = SimpleQueue()
        self.waiting: deque[SequenceState] = deque()
        self.orders: list[Order] = []
        self.blocks: dict[str | None, DecodeBatch] = {}
        self.stopping = False
        self.beat = time.monotonic()
        self.thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def submit(self, row: SequenceState) -> None:
        """Queue an answer; its pieces arrive through the row's `emit`, called in the generation thread."""
        self.inbox.put(row)

    def order(self, act: Callable[[ModelRunner], Any], unused: ServedModel | None = None) -> Future[Any]:
        """Run `act` on the model between two steps, once no row uses `unused`."""
        done: Future[Any] = Future()
        self.inbox.put((act, done, unused))
        return done

    def stop(self) -> None:
        """Leave the loop after the present step."""
        self.stopping = True
        self.inbox.put(None)

    @property
    def healthy(self) -> bool:
        fresh = time.monotonic() - self.beat < STALLED_AFTER_SECONDS
        return self.base is not None and self.thread.is_alive() and fresh

    @property
    def running(self) -> int:
        return sum(len(block.rows) for block in list(self.blocks.values()))

    @property
    def pending(self) -> int:
        """Rows that wait for a place in the batch."""
        return len(self.waiting) + self.inbox.qsize()

    def _run(self) -> None:
        # Only the end of the whole process tells its watcher that a restart is needed; a dead thread behind a
        # live HTTP server would not.
        try:
            self.base = self.load()
        except Exception as fault:
            print(f"The model cannot be loaded: {one_line(fault)}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(LOADING_FAILED)
        try:
            with torch.inference_mode():
                while not self.stopping:
                    self._turn(self.base)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(LOOP_FAILED)

    def _turn(self, base: ModelRunner) -> None:
        self.beat = time.monotonic()
        self._read_inbox()
        self._forget_ended()
        self._obey(base)
        self._admit(base)
        for adapter in list(self.blocks):
            block = self.blocks[adapter]
            take_tokens(block.rows, base.step(block))
            self._put_back(adapter, block)

    def _read_inbox(self) -> None:
        idle = not (self.blocks or self.waiting)
        try:
            item = self.inbox.get(timeout=IDLE_WAIT_SECONDS) if idle else self.inbox.get_nowait()
            while True:
                if isinstance(item, SequenceState):
                    self.waiting.append(item)
                elif item is not None:
                    self.orders.append(item)
                item = self.inbox.get_nowait()
        except Empty:
            return

    def _forget_ended(self) -> None:
        self.waiting = deque(row for row in self.waiting if not row.ended)
        for adapter in list(self.blocks):
            self._put_back(adapter, self.blocks[adapter])

    def _obey(self, base: ModelRunner) -> None:
        used = {row.ask.served for row in [*self.waiting, *(r for b in self.blocks.values() for r in b.rows)]}
        due = [order for order in self.orders if order[2] not in used]
        self.orders = [order for order in self.orders if order[2] in used]
        for act, done, _ in due:
            try:
                done.set_result(act(base))
            except AdapterNotLoadable as fault:
                done.set_exception(fault)

    def _admit(self, base: ModelRunner) -> None:
        for rows in self._admitted():
            scored = rows[0].ask.prompt_logprobs
            block, logits = base.prefill(rows, every_position=scored)
            for row, logits_tv in zip(rows, logits, strict=True):
                row.begin(scores(row, logits_tv) if scored else None)
            take_tokens(rows, logits[:, -1] if scored else logits)
            adapter = rows[0].ask.served.adapter
            fresh = block.drop_ended()
            if fresh is not None:
                present = self.blocks.get(adapter)
                self.blocks[adapter] = present.join(fresh) if present else fresh

    def _admitted(self) -> list[list[SequenceState]]:
        """Waiting rows that may start now, in groups that are read together."""
        groups: list[list[SequenceState]] = []
        room, longest, count = self.max_batch_size - self.running, 0, 0
        while self.waiting and count < room:
            longest = max(longest, len(self.waiting[0].ask.prompt_ids))
            count += 1
            if count > 1 and longest * count > PREFILL_TOKENS:
                break
            place(self.waiting.popleft(), groups)
        return groups

    def _put_back(self, adapter: str | None, block: DecodeBatch) -> None:
        left = block.drop_ended()
        if left is None:
            del self.blocks[adapter]
        else:
            self.blocks[adapter] = left


def place(row: SequenceState, groups: list[list[SequenceState]]) -> None:
    """Put a row with those of its adapter; the logits of a scored prompt are large, so it is read alone."""
    for group in groups:
        first = group[0].ask
        if first.served.adapter == row.ask.served.adapter and not (
            first.prompt_logprobs or row.ask.prompt_logprobs
        ):
            group.append(row)
            return
    groups.append([row])


def take_tokens(rows: list[SequenceState], logits_bv: Any) -> None:
    """Choose and hand out the next token of each row that has not ended."""
    likeliest = logits_bv.argmax(dim=-1).tolist()
    for row, best, logits_v in zip(rows, likeliest, logits_bv, strict=True):
        if row.ended:
            continue
        token, wanted = row.pick(best, logits_v), row.ask.sampling.logprobs
        row.accept(token, None if wanted is None else token_logprob(logits_v, token, wanted))


def scores(row: SequenceState, logits_tv: Any) -> Any:
    """Log probabilities of the row's prompt."""
    return prompt_logprobs(logits_tv, row.ask.prompt_ids, row.ask.sampling.logprobs or 0)


def one_line(fault: Exception) -> str:
    """The first sentence of a loader's long message, with its kind where the message is empty."""
    text = " ".join(str(fault).split())
    return text or type(fault).__name__
