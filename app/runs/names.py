"""Names of runs and of what they produce: the job and the stage, such as `ko-en-news-sft`."""

import unicodedata
from typing import Final

# With a stage's name and an id it stays below the 255 bytes that file systems allow, in every script.
MAX_JOB_CHARACTERS: Final = 40
# What the names of preflight jobs, and of all that they produce, begin with.
PREFLIGHT_PREFIX: Final = "preflight of "
PREFLIGHT_DATASET_PREFIX: Final = "preflight-of-"


def make_full_name(job: str, stage: str) -> str:
    """Return a name that people recognise; it need not be unique, since ids identify runs and models.

    It consists of lower-case letters and digits of every script, `-`, and the `_` of a stage's name, so that
    it is one name in a path and in every tracking service. A job that is named like its stage adds nothing.
    """
    text = unicodedata.normalize("NFKC", job).lower()
    words = "".join(letter if unicodedata.category(letter)[0] in "LMN" else " " for letter in text).split()
    slug = "-".join(words)[:MAX_JOB_CHARACTERS].strip("-")
    if not slug or slug == stage or slug.endswith(f"-{stage}"):
        return slug or stage
    return f"{slug}-{stage}"


def is_of_preflight(dataset_name: str) -> bool:
    """Return whether a dataset has the name of a part that the `prepare` stage of a preflight produces."""
    return dataset_name.startswith(PREFLIGHT_DATASET_PREFIX)
