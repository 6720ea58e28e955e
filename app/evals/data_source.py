"""The data sources of eval runs, with the fields of OpenAI's API."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from trainers.configs.base import DeploymentName
from trainers.configs.graders.templates import MAX_TEMPLATE_CHARACTERS, check_template, parse_template

MAX_ROWS = 50_000
MAX_MESSAGES = 256
# A run shows the first rows of its request; its output items show all.
MAX_SHOWN_ROWS = 100

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


Source = Annotated[FileContentSource | FileIdSource, Field(discriminator="type")]


class TemplatePart(_Part):
    """A part of a message with text."""

    type: Literal["input_text", "output_text", "text"]
    text: TemplateText = Field(description="Template of the text.")


class MessageTemplate(_Part):
    """A message, whose text may have variables of the item."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"] = Field(description="Author of the message.")
    content: (
        TemplateText | TemplatePart | Annotated[list[TemplatePart], Field(min_length=1, max_length=64)]
    ) = Field(description="Template of the text, or parts with text.")

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


class EvalSampling(_Part):
    """How a model generates; a field that is null has the default of the stage `evaluate`."""

    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000, description="Limit of the tokens.")
    max_completions_tokens: int | None = Field(None, ge=1, le=1_000_000, description="The older name.")
    temperature: float | None = Field(None, ge=0, le=2, description="Temperature; null means 1.")
    top_p: float | None = Field(None, gt=0, le=1, description="Share of the probability to sample from.")
    seed: int | None = Field(None, ge=0, le=2**32 - 1, description="Seed of the sampling.")


class JsonlDataSource(_Part):
    """Items with responses that exist already: nothing is generated."""

    type: Literal["jsonl"]
    source: Source


class GeneratedDataSource(_Part):
    """Items to which a model responds."""

    type: Literal["completions", "responses"]
    source: Source
    input_messages: InputMessages = Field(description="The prompt of each item.")
    model: DeploymentName = Field(description="Name of a deployed model.")
    sampling_params: EvalSampling = Field(default_factory=EvalSampling, description="How it generates.")


DataSource = Annotated[JsonlDataSource | GeneratedDataSource, Field(discriminator="type")]


def shorten_rows(data_source: dict[str, Any]) -> dict[str, Any]:
    """Return a data source with the first rows of its content, and the number of all as `content_total`."""
    source = data_source.get("source")
    content = source.get("content") if isinstance(source, dict) else None
    if not isinstance(source, dict) or not isinstance(content, list) or len(content) <= MAX_SHOWN_ROWS:
        return data_source
    short = source | {"content": content[:MAX_SHOWN_ROWS], "content_total": len(content)}
    return data_source | {"source": short}
