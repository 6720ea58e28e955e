"""Tasks of the lm-eval harness: stock tasks by name, and a user's own as a list of allowed fields.

A task file of lm-eval can run code: the tag `!function` imports Python, a metric that is not known is fetched
from a hub and executed, and Jinja templates are rendered without a sandbox. So the text of a task is parsed
as plain YAML, only the fields below exist, and its templates are rendered by a child process.
"""

from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from trainers.configs.base import MAX_COUNT, Config, DatasetRef, NonEmpty
from trainers.configs.parsing.yaml_values import load_yaml

MAX_TASKS = 64
MAX_SPLITS = 8
# Of all definitions of a stage: a kilobyte takes milliseconds to parse.
MAX_DEFINITION_CHARACTERS = 32_768
MAX_DEPTH = 16

TaskName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+\-]{0,127}$")]
SplitName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]
Template = Annotated[str, StringConstraints(max_length=16_384)]
Pattern = Annotated[str, StringConstraints(max_length=1000)]
Delimiter = Annotated[str, StringConstraints(max_length=64)]

OutputType = Literal["generate_until", "multiple_choice", "loglikelihood", "loglikelihood_rolling"]

METRICS_BY_OUTPUT = {
    "generate_until": ("exact_match", "bleu", "chrf", "ter"),
    "multiple_choice": ("acc", "acc_norm", "acc_mutual_info", "brier_score", "f1", "mcc"),
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}


class SplitData(Config):
    """The rows of one split of a task."""

    split: SplitName = Field("test", description="Name of the split in the task: `test`, `train`, `dev`, …")
    dataset: DatasetRef


class TaskFilter(Config):
    """A step that extracts the answer from a response."""

    function: Literal[
        "regex", "take_first", "lowercase", "uppercase", "remove_whitespace", "majority_vote"
    ] = Field(description="Name of the filter.")
    regex_pattern: Pattern | None = Field(None, description="For `regex`: the first group is the answer.")
    group_select: int | None = Field(
        None, ge=-100, le=100, description="For `regex`: which match; -1 is the last."
    )
    fallback: Delimiter | None = Field(None, description="For `regex`: the answer where nothing matches.")


class TaskFilters(Config):
    """A named chain of filters, which gives each metric a value of its own."""

    name: SplitName = Field(description="Name in the results, such as `strict-match`.")
    filter: list[TaskFilter] = Field(min_length=1, max_length=16, description="The steps, in order.")


class TaskMetric(Config):
    """A metric that is part of lm-eval."""

    metric: Literal[
        "exact_match", "bleu", "chrf", "ter", "acc", "acc_norm", "acc_mutual_info", "brier_score", "f1",
        "mcc", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte",
    ] = Field(description="Name of the metric.")  # fmt: skip
    aggregation: (
        Literal["mean", "median", "perplexity", "weighted_perplexity", "bits_per_byte", "f1", "bleu", "chrf",
                "ter", "matthews_corrcoef", "brier_score"] | None
    ) = Field(None, description="How rows are combined; by default as the metric defines it.")  # fmt: skip
    higher_is_better: bool | None = Field(None, description="By default as the metric defines it.")
    ignore_case: bool | None = Field(None, description="For `exact_match`.")
    ignore_punctuation: bool | None = Field(None, description="For `exact_match`.")
    ignore_numbers: bool | None = Field(None, description="For `exact_match`.")
    regexes_to_ignore: list[Pattern] | None = Field(None, max_length=16, description="For `exact_match`.")


class TaskGeneration(Config):
    """How a response is generated."""

    until: list[Delimiter] | None = Field(None, max_length=16, description="Texts that end the response.")
    max_gen_toks: int | None = Field(None, ge=1, le=MAX_COUNT, description="Limit of tokens.")
    do_sample: bool | None = Field(None, description="Sample instead of greedy decoding.")
    temperature: float | None = Field(None, ge=0, le=2, description="Temperature of samples.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus of samples.")


class TaskMetadata(Config):
    """Information about a task."""

    version: float | str | None = Field(None, description="Version of the task, which results contain.")


class TaskDefinition(Config):
    """A user's own task, in the fields of lm-eval's task files that run no code; others are errors."""

    task: TaskName = Field(description="Name in results.")
    output_type: Literal["generate_until", "multiple_choice", "loglikelihood", "loglikelihood_rolling"] = (
        Field("generate_until", description="What the model is asked for.")
    )
    training_split: SplitName | None = Field(None, description="Split with few-shot examples.")
    validation_split: SplitName | None = Field(
        None, description="Split that is scored if there is no test split."
    )
    test_split: SplitName | None = Field(None, description="Split that is scored.")
    fewshot_split: SplitName | None = Field(None, description="Split with few-shot examples.")
    doc_to_text: Template = Field("", description="Prompt: a field of the row, or a Jinja template.")
    doc_to_target: Template | int = Field(
        description="Reference: a field, a template, or the number of a choice."
    )
    doc_to_choice: Template | list[Template] | None = Field(
        None, description="Choices: a field with a list, a template that renders a list, or the choices."
    )
    description: Template = Field("", description="Text before the examples; not a template.")
    target_delimiter: Delimiter = Field(" ", description="Between prompt and answer.")
    fewshot_delimiter: Delimiter = Field("\n\n", description="Between examples.")
    num_fewshot: int | None = Field(None, ge=0, le=100, description="Examples before each prompt.")
    metric_list: list[TaskMetric] | None = Field(None, min_length=1, max_length=16, description="Metrics.")
    generation_kwargs: TaskGeneration | None = Field(None, description="How a response is generated.")
    filter_list: list[TaskFilters] | None = Field(
        None, min_length=1, max_length=16, description="Extractions."
    )
    repeats: int = Field(1, ge=1, le=64, description="Responses to each prompt.")
    metadata: TaskMetadata | None = Field(None, description="Version.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.output_type == "multiple_choice" and self.doc_to_choice is None:
            raise ValueError("doc_to_choice is missing, which output_type multiple_choice needs")
        if "{{" in self.description or "{%" in self.description:
            raise ValueError("description is not a template: write it as plain text")
        allowed = METRICS_BY_OUTPUT[self.output_type]
        for entry in self.metric_list or ():
            if entry.metric not in allowed:
                raise ValueError(
                    f"metric {entry.metric} is not for output_type {self.output_type}; "
                    f"choose one of {', '.join(allowed)}"
                )
        return self


def parse_definition(value: Any) -> Any:
    """Return the content of a definition that is given as YAML text; another value is returned unchanged."""
    if not isinstance(value, str):
        return value
    try:
        _check_structure(value)
        content = load_yaml(value)
    except yaml.YAMLError as error:
        raise ValueError(
            f"the definition is not plain YAML: {_describe(error)}. Tags such as `!function`, which run "
            "code, are refused"
        ) from None
    if not isinstance(content, dict):
        raise ValueError("the definition must be an object with fields such as `task` and `doc_to_text`")
    return content


def _check_structure(text: str) -> None:
    """Refuse aliases and deep nesting, while parsing no further than to the first of them."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            # An alias repeats what it refers to, so that a short text can be a large one.
            raise ValueError("the definition contains an alias (`*name`): write its content instead")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"the definition is nested more than {MAX_DEPTH} deep")


def _describe(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]


Definition = Annotated[TaskDefinition, BeforeValidator(parse_definition)]


class HarnessTask(Config):
    """A task and its data."""

    task: TaskName | None = Field(
        None,
        description="Name of a stock task, group or tag, such as `gsm8k`, `arc_easy`, `hellaswag` or `mmlu`.",
    )
    definition: Definition | None = Field(
        None, description="An own task: the text of a task file of lm-eval without code, or its fields."
    )
    data: list[SplitData] | None = Field(
        None,
        min_length=1,
        max_length=MAX_SPLITS,
        description="Datasets with the task's rows, by split. Without it, a stock task downloads its data "
        "from the hub, if the worker reaches one.",
    )
    member_field: NonEmpty = Field(
        "subject",
        max_length=200,
        description="For a group or a tag with `data`: the field of each row that names its task, by the "
        "task's own name or by that of its part of the public data, such as `anatomy` in `mmlu`.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.task is None) == (self.definition is None):
            raise ValueError("give either task, the name of a stock task, or definition")
        if self.definition is not None and self.data is None:
            raise ValueError("data is missing: a definition names no files, so give a dataset for each split")
        splits = [part.split for part in self.data or ()]
        if len(set(splits)) < len(splits):
            raise ValueError("each split of data occurs once")
        return self

    @property
    def label(self) -> str:
        """The name in results."""
        return self.definition.task if self.definition is not None else str(self.task)


def _check_size(value: Any) -> Any:
    """Refuse definitions that would take long to parse."""
    if isinstance(value, list):
        texts = [item.get("definition") for item in value if isinstance(item, dict)]
        n_characters = sum(len(text) for text in texts if isinstance(text, str))
        if n_characters > MAX_DEFINITION_CHARACTERS:
            raise ValueError(
                f"the definitions have {n_characters:,} characters; together they may have "
                f"{MAX_DEFINITION_CHARACTERS:,}"
            )
    return value


def _expand_name(value: Any) -> Any:
    """Return the task that is given by its name alone."""
    return {"task": value} if isinstance(value, str) else value


HarnessTasks = Annotated[
    list[Annotated[HarnessTask, BeforeValidator(_expand_name)]],
    BeforeValidator(_check_size),
    Field(
        min_length=1,
        max_length=MAX_TASKS,
        description="Names of stock tasks, or objects with data or a definition; the first is the main one.",
    ),
]
