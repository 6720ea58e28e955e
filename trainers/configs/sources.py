"""Sources of rows and sentence pairs for the `prepare` stage, other than datasets of the registry."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field

from trainers.configs.base import Config, NonEmpty
from trainers.configs.parsing.tagged_objects import expect_object

# `name` or `org/name`; the first form has no `/`, and is never a folder in a job.
HUB_DATASET = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)

SourcePath = Annotated[
    NonEmpty,
    Field(description="Path on the worker, under one of the folders in its TUNESMITH_DATASET_ROOTS."),
]
Column = Annotated[
    int | str, Field(description="Number of the column, from 1, or its name in the first line.")
]
# The fields that contain a path.
PATHS = frozenset({"path", "korean", "english", "name"})
KoreanField = Annotated[NonEmpty, Field(description="Field with the Korean sentence.")]
EnglishField = Annotated[NonEmpty, Field(description="Field with the English sentence.")]


class FileSource(Config):
    """Base class of sources whose files are named by paths."""

    @property
    def paths(self) -> list[str]:
        """The paths, in the order of their fields."""
        raise NotImplementedError

    def with_paths(self, replacements: Mapping[str, str]) -> Self:
        """Return the source with each path that is a key replaced by its value."""
        named = {name: value for name, value in self if name in PATHS and value in replacements}
        return self.model_copy(update={name: replacements[value] for name, value in named.items()})


class AlignedSource(FileSource):
    """Sentence pairs in two files: line n of one is the translation of line n of the other."""

    kind: Literal["aligned"] = Field("aligned", description="Kind of source.")
    korean: SourcePath
    english: SourcePath

    @property
    def paths(self) -> list[str]:
        """Paths of the files."""
        return [self.korean, self.english]


class TsvSource(FileSource):
    """Sentence pairs in two columns of tab-separated values."""

    kind: Literal["tsv"] = Field("tsv", description="Kind of source.")
    path: SourcePath
    korean_column: Column = 1
    english_column: Column = 2

    @property
    def paths(self) -> list[str]:
        """Path of the file."""
        return [self.path]


class TmxSource(FileSource):
    """Sentence pairs of a translation memory (TMX)."""

    kind: Literal["tmx"] = Field("tmx", description="Kind of source.")
    path: SourcePath

    @property
    def paths(self) -> list[str]:
        """Path of the file."""
        return [self.path]


class JsonlSource(FileSource):
    """Rows of a JSONL file; for the recipe `translation`, with a field for each language."""

    kind: Literal["jsonl"] = Field("jsonl", description="Kind of source.")
    path: SourcePath
    korean_field: KoreanField = "ko"
    english_field: EnglishField = "en"

    @property
    def paths(self) -> list[str]:
        """Path of the file."""
        return [self.path]


class HubSource(FileSource):
    """A data set of the Hugging Face hub, or a folder of data files in the hub's layout."""

    kind: Literal["hub"] = Field("hub", description="Kind of source.")
    name: NonEmpty = Field(
        description="Id of the data set, such as `openai/gsm8k`, or the absolute path of a folder."
    )
    subset: NonEmpty | None = Field(None, description="Configuration of the data set, such as `main`.")
    split: NonEmpty = Field("train", description="Split of the data set.")
    revision: NonEmpty | None = Field(
        None, description="Commit or tag. Set it, or the rows may change between two runs."
    )
    korean_field: KoreanField = "ko"
    english_field: EnglishField = "en"

    @property
    def paths(self) -> list[str]:
        """The name, if it is a path rather than an id on the hub."""
        return [self.name] if self.name.startswith((".", "/", "~")) or self.name.count("/") > 1 else []


Source = Annotated[
    AlignedSource | TsvSource | TmxSource | JsonlSource | HubSource,
    Field(discriminator="kind"),
    expect_object("kind", "aligned", "tsv", "tmx", "jsonl", "hub"),
]
