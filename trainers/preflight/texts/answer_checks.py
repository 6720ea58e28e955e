"""Findings in completions next to their prompts: empty, repeated, given away, or unrelated to the prompt."""

from collections import Counter
from collections.abc import Iterator, Sequence

from trainers.data.texts.folding import fold_text, is_blank
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, PlaceCounter, new_finding
from trainers.rendering.render import PromptCompletion

# A short completion that repeats may be a label; a long one is a refusal or a mistake in the data.
MIN_LONG_CHARACTERS = 30
MIN_REPEATED_ROWS = 10
MIN_REPEATED_SHARE = 0.1
# Rows are labelled if nearly all completions are short and occur again. One label of nearly all rows,
# however, teaches a constant.
LABELLED_SHARE = 0.9
CONSTANT_SHARE = 0.95
# Some tasks copy a passage of the prompt, and a prompt may end with the last of the possible answers.
MIN_COPIED_SHARE = 0.2
MIN_ENDING_SHARE = 0.9
MIN_COPIED_ROWS = 3
# A dataset may have several solutions of a problem; a prompt of many rows has lost its content.
MIN_UNLIKE_ANSWERS = 10
MIN_UNLIKE_SHARE = 0.1
# A bound on memory: about 100 bytes for each row.
MAX_REMEMBERED = 2_000_000


class BlankCheck:
    """Counts completions and prompts without a visible character."""

    def __init__(self) -> None:
        self._completions = self._rows = 0
        self._empty, self._empty_prompts = PlaceCounter(), PlaceCounter()

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Check the next row."""
        self._rows += 1
        for pair in pairs:
            self._completions += 1
            if is_blank(pair.completion_text) and not any(m.get("tool_calls") for m in pair.completion):
                self._empty.add(pair.row, _last_asked(pair))
        asked = [message["content"] for message in pairs[-1].prompt if message["role"] == "user"]
        if asked and all(map(is_blank, asked)):
            self._empty_prompts.add(pairs[-1].row, pairs[-1].completion_text)

    def findings(self) -> Iterator[Finding]:
        """Yield an error for empty completions, as validation does, and a warning for empty prompts."""
        if self._empty.count:
            yield new_finding(
                FindingCode.completion_empty,
                FindingLevel.error,
                f"{self._empty.count} of {self._completions} completions are empty.",
                "Drop these rows, or add the text of their completions.",
                places=self._empty.first,
                count=self._empty.count,
                rows=self._completions,
            )
        if self._empty_prompts.count:
            yield new_finding(
                FindingCode.prompt_empty,
                FindingLevel.warning,
                f"In {self._empty_prompts.count} of {self._rows} rows the user's messages are empty.",
                "Drop these rows, or add the text of their prompts.",
                places=self._empty_prompts.first,
                count=self._empty_prompts.count,
                rows=self._rows,
            )


class RepetitionCheck:
    """Counts completions with the same text; of the short ones, only the last of each row."""

    def __init__(self) -> None:
        self._total, self._rows = 0, 0
        self._long: Counter[int] = Counter()
        self._short: Counter[int] = Counter()
        self._lines: dict[int, int] = {}
        self._repeated: dict[int, tuple[int, str]] = {}

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Check the next row."""
        self._rows += 1
        self._total += len(pairs)
        for pair in pairs:
            text = fold_text(pair.completion_text)
            if len(text) >= MIN_LONG_CHARACTERS:
                self._count(self._long, text, pair.row)
            elif text and pair is pairs[-1]:
                self._count(self._short, text, pair.row)

    def findings(self) -> Iterator[Finding]:
        """Yield a warning for each text that is a large share of the completions."""
        recurring = sum(count for count in self._short.values() if count > 1)
        is_labelled = recurring >= LABELLED_SHARE * self._rows
        for key, place in self._repeated.items():
            is_long = key in self._long
            count, total = (
                (self._long if is_long else self._short)[key],
                self._total if is_long else self._rows,
            )
            share = CONSTANT_SHARE if is_labelled and not is_long else MIN_REPEATED_SHARE
            if count >= max(MIN_REPEATED_ROWS, share * total):
                yield new_finding(
                    FindingCode.completion_repeated,
                    FindingLevel.warning,
                    f"{count} of {total} completions are the same text.",
                    "Check whether they are refusals or a mistake, and drop most of them.",
                    places=[place],
                    count=count,
                    rows=total,
                )

    def _count(self, counts: Counter[int], text: str, line: int) -> None:
        key = hash(text)
        if key not in counts and len(self._lines) >= MAX_REMEMBERED:
            return
        counts[key] += 1
        first = self._lines.setdefault(key, line)
        if counts[key] == MIN_REPEATED_ROWS:
            self._repeated[key] = first, text


class GivenAnswerCheck:
    """Counts completions that equal the message that they respond to, or that it already contains."""

    def __init__(self) -> None:
        self._total = 0
        self._equal, self._contained, self._at_end = PlaceCounter(), PlaceCounter(), PlaceCounter()

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Check the next row."""
        for pair in pairs:
            self._total += 1
            answer, asked = fold_text(pair.completion_text), fold_text(_last_asked(pair))
            if not answer or not asked:
                continue
            if answer == asked:
                self._equal.add(pair.row, answer)
            elif answer in asked:
                if len(answer) >= MIN_LONG_CHARACTERS:
                    self._contained.add(pair.row, answer)
                if asked.endswith(answer):
                    self._at_end.add(pair.row, asked[-100:])

    def findings(self) -> Iterator[Finding]:
        """Yield warnings, because some tasks repeat a text or copy from it."""
        if self._equal.count:
            yield new_finding(
                FindingCode.completion_equals_prompt,
                FindingLevel.warning,
                f"{self._equal.count} of {self._total} completions repeat the message that they respond to, "
                "so the model learns to echo.",
                "Check whether the fields were exchanged or copied, and correct or drop these rows.",
                places=self._equal.first,
                count=self._equal.count,
                rows=self._total,
            )
        is_copied = self._contained.count >= max(MIN_COPIED_ROWS, MIN_COPIED_SHARE * self._total)
        is_ending = self._at_end.count >= max(MIN_REPEATED_ROWS, MIN_ENDING_SHARE * self._total)
        if is_copied or is_ending:
            places = self._contained if is_copied else self._at_end
            yield new_finding(
                FindingCode.completion_in_prompt,
                FindingLevel.warning,
                f"The prompts of {places.count} of {self._total} completions contain the whole completion, "
                "so the model learns to copy it.",
                "Remove the answer from the prompt, unless the task is to find it there.",
                places=places.first,
                count=places.count,
                rows=self._total,
            )


class UnlikeAnswersCheck:
    """Finds prompts that occur in many rows, each time with another completion."""

    def __init__(self) -> None:
        self._rows = 0
        self._first_lines: dict[int, int] = {}
        self._answers: set[tuple[int, int]] = set()
        self._unlike: Counter[int] = Counter()
        self._prompts: dict[int, str] = {}

    def add(self, pairs: Sequence[PromptCompletion]) -> None:
        """Check the last turn of the next row."""
        self._rows += 1
        pair = pairs[-1]
        prompt = "\n".join(fold_text(message["content"]) for message in pair.prompt)
        if not prompt.strip() or len(self._answers) >= MAX_REMEMBERED:
            return
        key = hash(prompt)
        self._first_lines.setdefault(key, pair.row)
        answer = key, hash(fold_text(pair.completion_text))
        if answer not in self._answers:
            self._answers.add(answer)
            self._unlike[key] += 1
            if self._unlike[key] == MIN_UNLIKE_ANSWERS:
                self._prompts[key] = prompt[:200]

    def findings(self) -> Iterator[Finding]:
        """Yield a warning if such prompts are a large share of the rows."""
        found = [key for key in self._prompts if self._unlike[key] >= MIN_UNLIKE_SHARE * self._rows]
        if found:
            count = sum(self._unlike[key] for key in found)
            yield new_finding(
                FindingCode.prompt_with_unlike_answers,
                FindingLevel.warning,
                f"{count} of {self._rows} rows have one of {len(found)} prompts, each time with another "
                "completion: nothing in the prompt decides which one is right."
                if len(found) > 1
                else f"{count} of {self._rows} rows have the same prompt, each time with another completion: "
                "nothing in the prompt decides which one is right.",
                "Check whether a field of the prompt is missing, such as the text that it asks about.",
                places=[(self._first_lines[key], self._prompts[key]) for key in found],
                count=count,
                rows=self._rows,
            )


def _last_asked(pair: PromptCompletion) -> str:
    """Return the last message of the prompt, unless it is the model's own."""
    last = pair.prompt[-1] if pair.prompt else {"role": "assistant"}
    return "" if last["role"] == "assistant" else str(last["content"])
