"""The generation thread: continuous batching of sequences, between whose steps others join and leave.

Each iteration executes commands, admits waiting sequences up to the batch size, prefills them, and then
makes one decoding step for each batch. Sequences with the same adapter share a batch; batches take turns.

Tensor suffixes: b sequences, t tokens, v vocabulary.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty
from typing import Any

import torch

from serving.engines.decoding.adapters import AdapterNotLoadable
from serving.engines.decoding.base import DecodeBatch, ModelRunner
from serving.engines.decoding.sampling import LogprobsMode, prompt_logprobs, token_logprob
from serving.engines.decoding.sequence import SequenceState
from serving.engines.decoding.served import ServedModel
from serving.engines.model_thread import IDLE_WAIT_SECONDS, ModelThread

# Prompt tokens, padding included, that one iteration reads: this bounds the pause of decoding sequences.
PREFILL_TOKENS = 4096
# Logits at all positions of scored prompts that are read together: 1 GB in fp32. One prompt may have more.
SCORED_LOGITS = 2**28

# A function to call, the future of its result, and the model that no sequence may use meanwhile.
Command = tuple[Callable[[ModelRunner], Any], Future[Any], ServedModel | None]


class GenerationLoop(ModelThread[ModelRunner]):
    """The thread that owns the model; others use it through `submit` and `execute`."""

    def __init__(
        self,
        load: Callable[[], ModelRunner],
        max_batch_size: int,
        logprobs_mode: LogprobsMode = LogprobsMode.raw,
    ) -> None:
        super().__init__(load, "generation")
        self.max_batch_size = max_batch_size
        self.logprobs_mode = logprobs_mode
        self.waiting: deque[SequenceState] = deque()
        self.commands: list[Command] = []
        self.batches: dict[str | None, DecodeBatch] = {}

    def submit(self, sequence: SequenceState) -> None:
        """Queue a sequence; its chunks are passed to its `emit` in the generation thread."""
        self.inbox.put(sequence)

    def execute(self, command: Callable[[ModelRunner], Any], after: ServedModel | None = None) -> Future[Any]:
        """Run `command` on the model between two steps, once no sequence uses the model `after`."""
        result: Future[Any] = Future()
        self.inbox.put((command, result, after))
        return result

    @property
    def running_count(self) -> int:
        """The number of sequences that are being decoded."""
        return sum(len(batch.sequences) for batch in list(self.batches.values()))

    @property
    def waiting_count(self) -> int:
        """The number of sequences that wait for a place in a batch."""
        return len(self.waiting) + self.inbox.qsize()

    def iterate(self, runner: ModelRunner) -> None:
        """Execute commands, admit sequences, and make one decoding step for each batch."""
        self._read_inbox()
        self._drop_finished()
        self._execute_commands(runner)
        self._admit(runner)
        for adapter in list(self.batches):
            batch = self.batches[adapter]
            append_tokens(batch.sequences, runner.step(batch), self.logprobs_mode)
            self._replace(adapter, batch)

    def _read_inbox(self) -> None:
        idle = not (self.batches or self.waiting)
        try:
            item = self.inbox.get(timeout=IDLE_WAIT_SECONDS) if idle else self.inbox.get_nowait()
            while True:
                if isinstance(item, SequenceState):
                    self.waiting.append(item)
                elif item is not None:
                    self.commands.append(item)
                item = self.inbox.get_nowait()
        except Empty:
            return

    def _drop_finished(self) -> None:
        self.waiting = deque(sequence for sequence in self.waiting if not sequence.finished)
        for adapter in list(self.batches):
            self._replace(adapter, self.batches[adapter])

    def _execute_commands(self, runner: ModelRunner) -> None:
        running = [sequence for batch in self.batches.values() for sequence in batch.sequences]
        used = {sequence.params.served for sequence in (*self.waiting, *running)}
        due = [command for command in self.commands if command[2] not in used]
        self.commands = [command for command in self.commands if command[2] in used]
        for command, result, _ in due:
            try:
                result.set_result(command(runner))
            except AdapterNotLoadable as error:
                result.set_exception(error)

    def _admit(self, runner: ModelRunner) -> None:
        for sequences in self._take_waiting():
            scored = sequences[0].params.prompt_logprobs
            batch, logits = runner.prefill(sequences, every_position=scored)
            # logits: one (t, v) for each scored prompt, else (b, v).
            for sequence, logits_tv in zip(sequences, logits, strict=True):
                sequence.begin(score_prompt(sequence, logits_tv) if scored else None)
            last = torch.stack([one[-1] for one in logits]) if scored else logits
            append_tokens(sequences, last, self.logprobs_mode)
            adapter = sequences[0].params.served.adapter
            unfinished = batch.drop_finished()
            if unfinished is not None:
                current = self.batches.get(adapter)
                self.batches[adapter] = current.merge(unfinished) if current else unfinished

    def _take_waiting(self) -> list[list[SequenceState]]:
        """Take the sequences that can start now, in groups whose prompts are read together."""
        groups: list[list[SequenceState]] = []
        free, longest, count = self.max_batch_size - self.running_count, 0, 0
        while self.waiting and count < free:
            longest = max(longest, len(self.waiting[0].params.prompt_ids))
            count += 1
            if count > 1 and longest * count > PREFILL_TOKENS:
                break
            add_to_group(self.waiting.popleft(), groups, self._max_scored_tokens())
        return groups

    def _max_scored_tokens(self) -> int:
        """Return the scored tokens, padding included, that are read together."""
        assert self.runner is not None
        return SCORED_LOGITS // self.runner.vocabulary_size

    def _replace(self, adapter: str | None, batch: DecodeBatch) -> None:
        unfinished = batch.drop_finished()
        if unfinished is None:
            del self.batches[adapter]
        else:
            self.batches[adapter] = unfinished


def add_to_group(sequence: SequenceState, groups: list[list[SequenceState]], max_scored_tokens: int) -> None:
    """Add a sequence to a group of its adapter; scored prompts join while their logits are not too large."""
    params = sequence.params
    for group in groups:
        first = group[0].params
        if (first.served.adapter, first.prompt_logprobs) != (params.served.adapter, params.prompt_logprobs):
            continue
        longest = max(len(each.params.prompt_ids) for each in [*group, sequence])
        if not params.prompt_logprobs or longest * (len(group) + 1) <= max_scored_tokens:
            group.append(sequence)
            return
    groups.append([sequence])


def append_tokens(sequences: list[SequenceState], logits_bv: Any, mode: LogprobsMode) -> None:
    """Select and append the next token of each sequence that is not finished."""
    most_likely_b = logits_bv.argmax(dim=-1).tolist()
    for sequence, most_likely, logits_v in zip(sequences, most_likely_b, logits_bv, strict=True):
        if sequence.finished:
            continue
        token, n_top = sequence.select_token(most_likely, logits_v), sequence.params.sampling.logprobs
        if token is None:
            sequence.end()
            continue
        if n_top is None:
            sequence.append(token, None)
            continue
        scored_v = sequence.processed_logits if mode is LogprobsMode.processed else logits_v
        sequence.append(token, token_logprob(scored_v, token, n_top))


def score_prompt(sequence: SequenceState, logits_tv: Any) -> Any:
    """Compute the log-probabilities of the sequence's prompt."""
    return prompt_logprobs(logits_tv, sequence.params.prompt_ids, sequence.params.sampling.logprobs or 0)
