"""Generated sentence pairs: clean, and split so that no held-out sentence is trained on."""

import pytest

from trainers.configs.recipes import TranslationRecipe
from trainers.data.filters.drops import DropRecorder
from trainers.data.filters.pair_cleaning import TranslationReport
from trainers.data.recipes.arithmetic import ProblemSplit
from trainers.data.recipes.filtered_translation import filtered_translation_rows
from trainers.data.recipes.sentences import generate_pairs


def test_no_held_out_sentence_is_in_the_training_part() -> None:
    train, held_out = (
        generate_pairs(count, split, seed=0)
        for count, split in [(900, ProblemSplit.train), (240, ProblemSplit.held_out)]
    )
    for side in ("korean", "english"):
        trained = {getattr(pair, side) for pair in train}
        assert len(trained) == 900
        assert not trained & {getattr(pair, side) for pair in held_out}


def test_equal_arguments_give_equal_pairs_and_other_seeds_others() -> None:
    assert generate_pairs(9, ProblemSplit.train, seed=1) == generate_pairs(9, ProblemSplit.train, seed=1)
    assert generate_pairs(9, ProblemSplit.train, seed=1) != generate_pairs(9, ProblemSplit.train, seed=2)


def test_particles_follow_the_final_consonant() -> None:
    pairs = {pair.english: pair.korean for pair in generate_pairs(900, ProblemSplit.train, seed=0)}
    assert all("서준이 " in korean for english, korean in pairs.items() if english.startswith("Seojun"))
    assert all("권을 " in korean for english, korean in pairs.items() if "books" in english)


def test_the_filters_of_the_recipe_drop_no_generated_pair() -> None:
    pairs = generate_pairs(300, ProblemSplit.held_out, seed=0)
    drops = DropRecorder()
    rows = list(filtered_translation_rows(TranslationRecipe(), pairs, drops, TranslationReport()))
    assert (len(rows), drops.report().dropped) == (600, 0)


def test_more_pairs_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="`count` is 100000"):
        generate_pairs(100_000, ProblemSplit.train, seed=0)
