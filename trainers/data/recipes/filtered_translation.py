"""The recipe `translation`: sentence pairs are cleaned, filtered and made into chat rows."""

from collections.abc import Iterable, Iterator

from trainers.configs.recipes import TranslationRecipe
from trainers.data.files.aligned import TranslationPair
from trainers.data.filters.alignment import SourceIndex, filter_by_alignment, remember_sources
from trainers.data.filters.drops import DropRecorder
from trainers.data.filters.pair_cleaning import TranslationReport, clean_pairs, report_unlike_targets
from trainers.data.filters.pair_filters import (
    drop_identical_sides,
    filter_by_language,
    filter_by_length_ratio,
)
from trainers.data.formats import Row
from trainers.data.recipes.translation import translation_rows


def filtered_translation_rows(
    recipe: TranslationRecipe,
    pairs: Iterable[TranslationPair],
    drops: DropRecorder,
    report: TranslationReport,
) -> Iterator[tuple[int, Row]]:
    """Yield rows with the line of their pair; both reports are complete once all rows are read."""
    sources = SourceIndex()
    pairs = remember_sources(clean_pairs(pairs, drops, report), sources)
    pairs = drop_identical_sides(pairs, drops)
    if recipe.check_language:
        pairs = filter_by_language(pairs, drops)
    if recipe.check_length:
        pairs = filter_by_length_ratio(pairs, drops)
    if recipe.check_alignment:
        pairs = filter_by_alignment(pairs, drops, sources)
    pairs = report_unlike_targets(pairs, report)
    rows = translation_rows(pairs, directions=recipe.directions, wordings=recipe.wordings, seed=recipe.seed)
    return ((row["line"], row) for row in rows)
