"""Where the `prepare` stage reads rows or sentence pairs from, other than a dataset of the registry."""

from typing import Annotated, Literal

from pydantic import Field

from trainers.configs.base import Config, NonEmpty

SourcePath = Annotated[
    NonEmpty, Field(description="Path on the worker, under one of the roots that it may read.")
]
Column = Annotated[
    int | str, Field(description="Number of the column from 1, or its name in the first line.")
]


class AlignedSource(Config):
    """Two files whose lines belong together."""

    kind: Literal["aligned"] = Field("aligned", description="Kind of the source.")
    korean: SourcePath
    english: SourcePath

    @property
    def paths(self) -> list[str]:
        return [self.korean, self.english]


class TsvSource(Config):
    """Sentence pairs in two columns of tab-separated values."""

    kind: Literal["tsv"] = Field("tsv", description="Kind of the source.")
    path: SourcePath
    korean_column: Column = 1
    english_column: Column = 2

    @property
    def paths(self) -> list[str]:
        return [self.path]


class TmxSource(Config):
    """Sentence pairs of a translation memory."""

    kind: Literal["tmx"] = Field("tmx", description="Kind of the source.")
    path: SourcePath

    @property
    def paths(self) -> list[str]:
        return [self.path]


class JsonlSource(Config):
    """Rows of JSON; for translation, with a field for each language."""

    kind: Literal["jsonl"] = Field("jsonl", description="Kind of the source.")
    path: SourcePath
    korean_field: NonEmpty = "ko"
    english_field: NonEmpty = "en"

    @property
    def paths(self) -> list[str]:
        return [self.path]


class HubSource(Config):
    """A data set of the hub, streamed; by hand also a folder of data files."""

    kind: Literal["hub"] = Field("hub", description="Kind of the source.")
    name: NonEmpty = Field(description="Id of the data set, such as `openai/gsm8k`.")
    subset: NonEmpty | None = Field(None, description="Its configuration, such as `main`.")
    split: NonEmpty = "train"
    revision: NonEmpty | None = Field(None, description="Commit or tag, so that the rows stay the same.")
    korean_field: NonEmpty = "ko"
    english_field: NonEmpty = "en"

    @property
    def paths(self) -> list[str]:
        """The name, where it is none that a hub could have."""
        return [self.name] if self.name.startswith((".", "/", "~")) or self.name.count("/") > 1 else []


Source = Annotated[
    AlignedSource | TsvSource | TmxSource | JsonlSource | HubSource, Field(discriminator="kind")
]
