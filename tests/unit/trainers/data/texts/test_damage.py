"""Goal: damage is found in every language that shows it, and sound text of many scripts gives none."""

import pytest

from trainers.data.texts.damage import decode_entities, find_entity, find_mojibake

SOUND = [
    "안녕하세요 “네”… ㅋㅋ — 좋다·끝",
    "“café”… così”… Spaß“ naïve «bon» É »",
    "¡Órale! ¡¿Qué?! ¿¿¿ ··· ½ ¼ ¾ x²·³¹ ÷×±° §§ ¶¶ £¥¢¤ 3×°",
    "ÀÉÎÕÜ äöüß Ðæþ ñáéíóúü åäöÅÄÖ MANHÃ… ÃO",
    "Привет, как дела? НЕТ",
    "שלום עולם! مرحبا بالعالم",
    "👩‍👩‍👧‍👦 🇰🇷 ❤️ 日本語、中文。",
]


@pytest.mark.parametrize(
    "text", ["café", "안녕하세요", "“Hi”", "Привет", "日本語", "😀", "שלום", "100\u00a0%"]
)
def test_utf8_read_as_latin_is_found(text: str) -> None:
    for encoding in ("cp1252", "latin-1"):
        try:
            assert find_mojibake("ok " + text.encode().decode(encoding)) is not None
        except UnicodeDecodeError:
            assert encoding == "cp1252"


@pytest.mark.parametrize(
    "text",
    [
        "Obama¡¯s campaign",
        "¡°Down¡±",
        "to ¢æ114 per ton",
        "안녕하세요".encode("cp949").decode("latin-1"),
        "a\ufffdb",
        "占쏙옙",
    ],
)
def test_korean_read_as_latin_and_replaced_characters_are_found(text: str) -> None:
    assert find_mojibake(text) is not None


@pytest.mark.parametrize("text", SOUND)
def test_sound_text_is_not_damaged(text: str) -> None:
    assert (find_mojibake(text), find_entity(text)) == (None, None)


@pytest.mark.parametrize("text", ["Tom &amp; Jerry", "&#8212; he said", "&#x27;", "caf&eacute;"])
def test_entities_are_found_where_they_begin(text: str) -> None:
    assert find_entity(text) == text.index("&")


@pytest.mark.parametrize(
    "text",
    ["AT&T; R&D", "a && b; c", "f(&x);", "Write &amp; in HTML.", "<p>Tom &amp; Jerry</p>", "a&unknownname;"],
)
def test_an_ampersand_or_a_text_about_markup_is_no_entity(text: str) -> None:
    assert find_entity(text) is None


def test_entities_are_decoded_even_if_they_were_encoded_twice() -> None:
    assert (
        decode_entities("jalape&ntilde;os &amp;lt; &#44419; AT&T; &nosuch;")
        == "jalapeños < 궃 AT&T; &nosuch;"
    )
