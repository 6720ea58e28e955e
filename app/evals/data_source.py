"""The data sources of eval runs, with the fields of OpenAI's API."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.evals.sampling import CompletionsSampling, ResponsesSampling
from trainers.configs.base import DeploymentName
from trainers.configs.graders.templates import MAX_TEMPLATE_CHARACTERS, check_template, parse_template

MAX_ROWS = 50_000
MAX_MESSAGES = 256
# A run shows the first rows of its request; its output items show all.
MAX_SHOWN_ROWS = 100
MEDIA = frozenset({"input_image", "input_audio", "image_url"})

Item = Annotated[dict[str, Any], Field(description="The fields of the item.")]
TemplateText = Annotated[str, Field(max_length=MAX_TEMPLATE_CHARACTERS), AfterValidator(check_template)]


def _check_reference(path: str) -> str:
    variables = parse_template("{{" + path + "}}").parts
    if len(variables) != 1:
        raise ValueError("it is not the path of one field, such as `item.input`")
    return path


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SourceRow(_Part):
    """An item, and a completion if there is one already."""

    item: Item
    sample: dict[str, Any] | None = Field(None, description="A completion, as `sample` of graders.")


class FileContentSource(_Part):
    """Items in the request itself."""

    type: Literal["file_content"]
    content: list[SourceRow] = Field(min_length=1, max_length=MAX_ROWS, description="The items.")


class FileIdSource(_Part):
    """Items in a file, of which each line is an object with `item` and perhaps `sample`."""

    type: Literal["file_id"]
    id: str = Field(max_length=64, description="Id of the file.")


# In seconds; the year 2242.
UnixTime = Annotated[int, Field(ge=0, le=2**33)]
Filters = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class StoredSource(_Part):
    """Filters of what the caller's key has stored, which become the items: the newest first."""

    created_after: UnixTime | None = Field(None, description="Earliest time, in Unix seconds.")
    created_before: UnixTime | None = Field(None, description="Latest time, in Unix seconds.")
    metadata: Filters | None = Field(None, max_length=16, description="Pairs that all of them have.")
    model: str | None = Field(None, max_length=200, description="Name of the model in their requests.")
    limit: int | None = Field(
        None, ge=1, le=MAX_ROWS, description="Maximum number of them; null means all, at most 50,000."
    )


class StoredCompletionsSource(StoredSource):
    """Stored chat completions: the item has `input`, the messages, and the sample is the completion."""

    type: Literal["stored_completions"]


class StoredResponsesSource(StoredSource):
    """Stored responses: the item has `input`, the messages, and the sample is the response."""

    type: Literal["responses"]
    instructions_search: str | None = Field(
        None, min_length=1, max_length=1000, description="Text that the instructions contain."
    )
    reasoning_effort: str | None = Field(None, max_length=32, description="Effort of the request.")
    temperature: float | None = Field(None, ge=0, le=2, description="Temperature of the request.")
    top_p: float | None = Field(None, ge=0, le=1, description="`top_p` of the request.")
    tools: list[Annotated[str, Field(max_length=64)]] | None = Field(
        None, max_length=128, description="Names of functions, all of which the request offered."
    )
    users: list[Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=1000, description="Users, one of which the request names as `user`."
    )


RowSource = Annotated[FileContentSource | FileIdSource, Field(discriminator="type")]
CompletionsSource = Annotated[
    FileContentSource | FileIdSource | StoredCompletionsSource, Field(discriminator="type")
]
ResponsesSource = Annotated[
    FileContentSource | FileIdSource | StoredResponsesSource, Field(discriminator="type")
]


def _refuse_media(content: Any) -> Any:
    parts = content if isinstance(content, list) else [content]
    if any(isinstance(part, dict) and part.get("type") in MEDIA for part in parts):
        raise ValueError("models of runs read text here: images and audio are not offered")
    return content


class TemplatePart(_Part):
    """A part of a message with text."""

    type: Literal["input_text", "output_text", "text"]
    text: TemplateText = Field(description="Template of the text.")


class MessageTemplate(_Part):
    """A message, whose text may have variables of the item."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"] = Field(description="Author of the message.")
    content: Annotated[
        TemplateText
        | TemplatePart
        | Annotated[list[TemplateText | TemplatePart], Field(min_length=1, max_length=64)],
        BeforeValidator(_refuse_media),
    ] = Field(description="Template of the text, or parts with text.")

    @property
    def text(self) -> str:
        """The template of the whole text."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return "".join(part if isinstance(part, str) else part.text for part in parts)


class TemplateInput(_Part):
    """Messages that are made from each item."""

    type: Literal["template"]
    template: list[MessageTemplate] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="The messages."
    )


class ReferenceInput(_Part):
    """Messages that each item contains."""

    type: Literal["item_reference"]
    item_reference: Annotated[str, AfterValidator(_check_reference)] = Field(
        pattern=r"^item\.", max_length=200, description="Path of the messages, such as `item.input`."
    )


InputMessages = Annotated[TemplateInput | ReferenceInput, Field(discriminator="type")]


class JsonlDataSource(_Part):
    """Items with responses that exist already: nothing is generated."""

    type: Literal["jsonl"]
    source: RowSource


class _SampledDataSource(_Part):
    """Items to which a model responds; without a model, the samples that they have are judged."""

    input_messages: InputMessages | None = Field(
        None, description="The prompt of each item; for stored answers, by default `item.input`."
    )
    model: DeploymentName | None = Field(
        None, description="Name of a deployed model; null judges the samples that the items have."
    )

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        is_stored = isinstance(getattr(self, "source", None), StoredSource)
        if self.model is not None and self.input_messages is None and not is_stored:
            raise ValueError("`input_messages` is required: it says what the model is asked")
        if self.model is None and self.input_messages is not None:
            raise ValueError("`model` is required: `input_messages` is the prompt of a model")
        return self


class CompletionsDataSource(_SampledDataSource):
    """Items to which a model responds in a chat."""

    type: Literal["completions"]
    source: CompletionsSource
    sampling_params: CompletionsSampling = Field(
        default_factory=CompletionsSampling, description="How it generates."
    )


class ResponsesDataSource(_SampledDataSource):
    """Items to which a model responds, with the sampling parameters of responses."""

    type: Literal["responses"]
    source: ResponsesSource
    sampling_params: ResponsesSampling = Field(
        default_factory=ResponsesSampling, description="How it generates."
    )


DataSource = Annotated[
    JsonlDataSource | CompletionsDataSource | ResponsesDataSource, Field(discriminator="type")
]
SampledDataSource = CompletionsDataSource | ResponsesDataSource


def find_model(data_source: DataSource) -> str | None:
    """Return the model that responds to the items, if one does."""
    return data_source.model if isinstance(data_source, SampledDataSource) else None


def shorten_rows(data_source: dict[str, Any]) -> dict[str, Any]:
    """Return a data source with the first rows of its content, and the number of all as `content_total`."""
    source = data_source.get("source")
    content = source.get("content") if isinstance(source, dict) else None
    if not isinstance(source, dict) or not isinstance(content, list) or len(content) <= MAX_SHOWN_ROWS:
        return data_source
    short = source | {"content": content[:MAX_SHOWN_ROWS], "content_total": len(content)}
    return data_source | {"source": short}
