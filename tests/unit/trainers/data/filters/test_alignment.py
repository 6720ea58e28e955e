"""Goal: pairs that cannot belong together are dropped with the signs, and free translations are kept."""

from collections.abc import Iterable

import pytest

from tests.shared_data import SharedData
from trainers.data.files.aligned import TranslationPair, read_aligned
from trainers.data.filters.alignment import SourceIndex, filter_by_alignment, find_evidence, remember_sources
from trainers.data.filters.drops import DropRecorder
from trainers.data.filters.pair_cleaning import TranslationReport, clean_pairs, report_unlike_targets

GLOSSARY = TranslationPair(
    1,
    "embattled 곤경에 처한, 고전중인",
    "The embattled World Bank President has said he does not plan to resign.",
)
HEADLINE = TranslationPair(
    2,
    "Former dentist sold bones and body parts 전직 치과의사, 천 여구의 시신에서 장기 빼내 판매",
    "Scores of bullet-riddled bodies have been found in Baghdad, while 47 factory workers were killed.",
)
LABEL = TranslationPair(
    3, "영한사전 약어표", "The talks could jumpstart a peace process that has been long dormant."
)
CUT = TranslationPair(
    4, "그들은 16개월 안에 이라크에서 철수하겠다는 제안을 환영한다고 여러 차례 밝혔다.", "16 months."
)
PLAIN = [
    ("이번 주말 7천만 달러의 수익을 거두었습니다.", "It made more than $70 million this weekend."),
    ("이 금융회사는 2700만 달러를 받았다.", "The financing company received $27 million."),
    ("1억1천만 달러가 들었다.", "It cost $110 million."),
    ("25도", "77 degrees"),
    ("저장", "Save all of the changes"),
    ("iPhone 15 Pro Max 출시", "The iPhone 15 Pro Max is out"),
    ("npm install을 실행하세요", "Run npm install"),
    ("Docker Compose로 PostgreSQL과 Redis를 실행합니다.", "Run PostgreSQL and Redis with Docker Compose."),
    ("‘메민(Memin for President)’ 시리즈가 인기였다.", "The series Memin for President was popular."),
    ("그는 12초87로 우승했다.", "He won in 12.87 seconds."),
    ("그 말이 맞니.", "Is that right?"),
]


def keep(pairs: Iterable[TranslationPair], drops: DropRecorder) -> list[TranslationPair]:
    sources = SourceIndex()
    return list(filter_by_alignment(remember_sources(pairs, sources), drops, sources))


@pytest.mark.parametrize(
    "pair", [GLOSSARY, HEADLINE, LABEL, CUT], ids=["glossary", "headline", "label", "cut"]
)
def test_a_pair_with_strong_evidence_is_dropped_with_its_signs(pair: TranslationPair) -> None:
    drops = DropRecorder()
    assert keep([pair], drops) == []
    (drop,) = drops.report().first
    assert (drop.line, drop.reason) == (pair.line, "misaligned")
    assert "Hangul syllables" in drop.detail or "English phrase" in drop.detail


@pytest.mark.parametrize(("korean", "english"), PLAIN)
def test_a_free_or_short_translation_is_kept(korean: str, english: str) -> None:
    drops = DropRecorder()
    assert len(keep([TranslationPair(1, korean, english)], drops)) == 1


@pytest.mark.parametrize(
    ("korean", "english", "sign"),
    [
        ("13억 달러를 냈다.", "They paid $27 million.", "no number in common (13; 27)"),
        ("IBM의 새 기계", "The new machine", "lacks ibm"),
        ("정말이에요?", "They went home.", "only the Korean side is a question"),
    ],
)
def test_a_weak_sign_alone_keeps_the_pair(korean: str, english: str, sign: str) -> None:
    (found,) = find_evidence(korean, english)
    assert sign in found.detail
    assert keep([TranslationPair(1, korean, english)], DropRecorder())


def test_a_side_with_another_translation_is_a_weak_sign_and_is_reported() -> None:
    pairs = [
        TranslationPair(1, "고양이가 집에 갔다.", "The cat went home."),
        TranslationPair(2, "고양이가 집에  갔다.", "The cat has gone home."),
        TranslationPair(3, "고양이 12마리", "The cat went home."),
        TranslationPair(4, "고양이가 집에 갔다.", "The cat went home."),
        TranslationPair(5, "IBM의 기계", "The cat went home."),
    ]
    drops, report = DropRecorder(), TranslationReport()
    kept = [pair.line for pair in report_unlike_targets(keep(pairs, drops), report)]
    assert kept == [1, 2, 3, 4]
    assert "line 1 has the same English side with another translation" in drops.report().first[0].detail
    assert report.unlike_targets == 2
    assert [(one.line, one.first_line, one.side) for one in report.first_unlike] == [
        (2, 1, "Korean"),
        (3, 1, "English"),
    ]
    assert "2 sentence pairs" in report.describe_unlike()


def test_the_memory_for_sides_is_bounded() -> None:
    sources = SourceIndex(max_remembered=2)
    for line, korean, english in ((1, "하나", "one"), (2, "둘", "two")):
        sources.remember(TranslationPair(line, korean, english))
    assert sources.first_unlike(TranslationPair(3, "둘", "pair")) is None
    assert sources.first_unlike(TranslationPair(4, "하나", "1")) == ("Korean", 1)


# Glossary entries and headlines next to other sentences, and the sides that are cut off, checked by hand.
WRONG_LINES = {
    *(71, 73, 345, 578, 589, 688, 787, 808, 822, 823, 833, 836, 883, 884, 892, 913, 919, 926, 927),
    *(928, 941, 942, 962, 963, 967, 968, 974, 975, 984, 988, 995, 996),
}


def test_glossary_lines_among_real_news_are_dropped_and_translations_are_kept(
    shared_data: SharedData,
) -> None:
    drops = DropRecorder()
    pairs = read_aligned(shared_data.news / "train.ko", shared_data.news / "train.en")
    keep(clean_pairs(pairs, DropRecorder(), TranslationReport()), drops)
    dropped = {drop.line for drop in drops.report().first}
    if shared_data.pair_count == 1000:
        assert dropped - {156} == WRONG_LINES
    assert len(dropped) <= shared_data.pair_count * 0.035
