"""Configs of metrics of translations."""

import math
from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from trainers.configs.base import MAX_BYTES, MAX_SECONDS, NonEmpty
from trainers.configs.metrics.base import MetricConfig, MetricScale
from trainers.configs.rewards import TargetLanguage


class BleuTokenizer(StrEnum):
    """How sacreBLEU splits words for BLEU; `auto` decides by the references."""

    auto = "auto"
    v13a = "13a"
    intl = "intl"
    ko_mecab = "ko-mecab"
    ja_mecab = "ja-mecab"
    zh = "zh"
    char = "char"
    none = "none"


class TranslationMetric(MetricConfig):
    """Fields of every metric of translations."""

    # Values of the corpus, or of a language that all references decide.
    can_grow: ClassVar[bool] = False

    clean: bool = Field(
        True,
        description="Remove what chat models write around a translation, where it is certain: thinking, code "
        "fences, the repeated source, labels such as `Translation:`, and quotation marks around all. Each is "
        "counted in the details.",
    )
    source_field: NonEmpty | None = Field(
        None,
        description="Field of the row with the text that was translated. By default the last user message, "
        "without the request if a recipe of ours wrote it.",
    )


class Bleu(TranslationMetric):
    """Corpus BLEU by sacreBLEU, 0 to 100; a row's value is its sentence BLEU."""

    metric: Literal["bleu"] = Field("bleu", description="Kind of metric.")
    tokenizer: BleuTokenizer = Field(
        BleuTokenizer.auto,
        description="How words are split. `auto` is `ko-mecab` for Korean references, `zh` for Chinese, "
        "`ja-mecab` for Japanese where it is installed and else `char`, and `13a` for others. Scores of "
        "different tokenizers do not compare.",
    )
    lowercase: bool = Field(False, description="Compare without regard to upper and lower case.")

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(0.0, 100.0, is_share=False)


class Chrf(TranslationMetric):
    """Corpus chrF by sacreBLEU, 0 to 100: n-grams of characters (Popović, 2015, W15-3049)."""

    metric: Literal["chrf"] = Field("chrf", description="Kind of metric.")
    lowercase: bool = Field(False, description="Compare without regard to upper and lower case.")

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(0.0, 100.0, is_share=False)


class ChrfPlusPlus(TranslationMetric):
    """Corpus chrF++ by sacreBLEU, 0 to 100: n-grams of characters, words and pairs of words (W17-4770)."""

    metric: Literal["chrf_plus_plus"] = Field("chrf_plus_plus", description="Kind of metric.")
    lowercase: bool = Field(False, description="Compare without regard to upper and lower case.")

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(0.0, 100.0, is_share=False)


class Ter(TranslationMetric):
    """Translation edit rate by sacreBLEU: edits for each 100 words of the reference; lower is better."""

    metric: Literal["ter"] = Field("ter", description="Kind of metric.")
    normalized: bool | None = Field(
        None,
        description="Separate punctuation from words. Null: if the references are Korean, Chinese or "
        "Japanese.",
    )
    asian_support: bool | None = Field(
        None,
        description="Split Chinese characters and Asian punctuation too, which needs `normalized`. Null: if "
        "the references are Korean, Chinese or Japanese.",
    )
    case_sensitive: bool = Field(False, description="Count a change of case as an edit.")

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(0.0, None, higher_is_better=False, is_share=False)


class LengthRatio(TranslationMetric):
    """How equal the lengths of responses and references are: the shorter by the longer, at most 1.

    The details have the ratio itself, characters of the responses for each of the references.
    """

    metric: Literal["length_ratio"] = Field("length_ratio", description="Kind of metric.")

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(is_share=False)


class WrongLanguage(TranslationMetric):
    """Share of the responses whose letters are of another script than the language's; lower is better."""

    metric: Literal["wrong_language"] = Field("wrong_language", description="Kind of metric.")
    language: TargetLanguage | None = Field(
        None, description="Language of the translations; null: that of the references, by their script."
    )

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(higher_is_better=False)


class NumbersKept(TranslationMetric):
    """Share of the source's numbers that the response contains, a mean over the rows that have any."""

    can_grow: ClassVar[bool] = True
    metric: Literal["numbers_kept"] = Field("numbers_kept", description="Kind of metric.")

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have."""
        return MetricScale(is_share=False)


class Comet(TranslationMetric):
    """Mean score of a COMET model, which read source, response and reference (Rei et al., 2020)."""

    metric: Literal["comet"] = Field("comet", description="Kind of metric.")
    checkpoint: NonEmpty = Field(
        description="Folder of the COMET model on the worker's host, under an allowed root: `hparams.yaml`, "
        "`checkpoints/model.ckpt` or `model.safetensors`, and `encoder/` with the `config.json` and "
        "`tokenizer.json` of its XLM-RoBERTa."
    )
    batch_size: int = Field(16, ge=1, le=4096, description="Translations that are scored at once.")
    max_seconds: float = Field(3600.0, gt=0, le=MAX_SECONDS, description="Time limit for each model's rows.")
    max_memory_bytes: int = Field(
        16 << 30, ge=1 << 30, le=MAX_BYTES, description="Memory that scoring may use; on a CPU under Linux."
    )
    environment: NonEmpty | None = Field(
        None,
        description="Folder of the environment that `make comet` creates. Omit it in a job: the worker sets "
        "it.",
    )

    @property
    def capability(self) -> str | None:
        """The environment of COMET."""
        return "comet"

    @property
    def scale(self) -> MetricScale:
        """The values that the metric can have: most are between 0 and 1, but no formula bounds them."""
        return MetricScale(-math.inf, None, is_share=False)


TRANSLATION_CONFIGS = (Bleu, Chrf, ChrfPlusPlus, Ter, LengthRatio, WrongLanguage, NumbersKept, Comet)
