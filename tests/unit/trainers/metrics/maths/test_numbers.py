"""Notations of numbers, and their equality."""

import random
from fractions import Fraction

import pytest

from trainers.metrics.maths.final_answer import exact_match, final_answer

SPELLINGS = [
    ("3/4", "3/4"),
    ("3 / 4", "0.75"),
    ("-3/4", "-0.75"),
    ("1 1/2", "1.5"),
    ("-1 1/2", "-1.5"),
    ("1½", "1.5"),
    ("½", "0.5"),
    (r"\frac{3}{4}", "0.75"),
    (r"-\dfrac{1,000}{3}", "-1000/3"),
    (r"\frac{-3}{4}", "-0.75"),
    (r"\tfrac34", "0.75"),
    (r"1\frac{1}{2}", "1.5"),
    ("$1,234,567.89", "1234567.89"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("−7", "-7"),
    ("€1.234,56", "1234.56"),
    ("1.234.567", "1234567"),
    ("1.234", "1.234"),
    ("10\N{NARROW NO-BREAK SPACE}000", "10000"),
    (r"10\,000", "10000"),
    ("10,\\!000", "10000"),
    (r"1{,}234", "1234"),
    ("1e3", "1000"),
    ("2.5E-3", "0.0025"),
    ("1.5 × 10^8", "150000000"),
    (r"1.5 \times 10^{-2}", "0.015"),
    ("2^10", "1024"),
    ("10^{5}", "100000"),
    ("3.5 km", "3.5"),
    ("50 cm^2", "50"),
    (r"90^\circ", "90"),
    ("1.8 billion", "1800000000"),
    ("18개", "18"),
    ("１８", "18"),
    ("+5", "5"),
    (".5", "0.5"),
]
FORMULAS = [
    r"2\sqrt{3}",
    r"\sqrt{2}",
    r"\frac{\pi}{2}",
    "2π",
    "3x",
    "x^2",
    "5/0",
    "2^n",
    "2 7/3",
    "1e401",
    "9^999",
]


@pytest.mark.parametrize(("spelling", "value"), SPELLINGS)
def test_each_notation_is_parsed_to_its_exact_value(spelling: str, value: str) -> None:
    assert final_answer(spelling) == Fraction(value)
    assert final_answer(f"#### {spelling}") == Fraction(value)
    assert final_answer(rf"so it is \boxed{{{spelling}}}.") == Fraction(value)
    assert final_answer(f"The answer is {spelling}.") == Fraction(value)


@pytest.mark.parametrize("formula", FORMULAS)
def test_a_formula_is_not_a_number_and_equals_nothing(formula: str) -> None:
    assert final_answer(formula) is None
    assert final_answer(rf"\boxed{{{formula}}}") is None
    assert not exact_match(formula, formula)


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("50%", "50%", True),
        ("50", "50%", True),
        ("0.5", "50%", True),
        ("50%", "0.5", True),
        ("50 percent", "1/2", True),
        (r"50\%", "50", True),
        ("5%", "50%", False),
        ("0.5", "50", False),
        ("0.5%", "0.5", False),
        ("100%", "1", False),
        ("500%", "5", False),
    ],
)
def test_form_of_the_reference_decides_what_a_percent_sign_means(
    answer: str, reference: str, right: bool
) -> None:
    assert exact_match(answer, reference) is right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("5:30", "5:30", True),
        ("05:30 p.m.", "5:30 PM", True),
        ("5:30 pm", "5:30", True),
        ("5:30 am", "5:30 pm", False),
        ("5:30", "5:31", False),
        ("5:30", "5.5", False),
        ("1:05:30", "1:05:30", True),
    ],
)
def test_time_of_a_clock_equals_only_itself(answer: str, reference: str, right: bool) -> None:
    assert exact_match(f"It starts at {answer}.", f"#### {reference}") is right


def test_any_fraction_survives_every_way_to_write_it() -> None:
    dice = random.Random(7)
    for _ in range(500):
        whole, bottom = dice.randint(0, 10**6), dice.randint(2, 999)
        top, sign = dice.randint(1, bottom - 1), dice.choice(["", "-", "−"])
        value = (whole + Fraction(top, bottom)) * (-1 if sign else 1)
        improper = whole * bottom + top
        spellings = [
            f"{sign}{improper}/{bottom}",
            f"{sign}{improper:,}/{bottom}",
            rf"{sign}\frac{{{improper}}}{{{bottom}}}",
            f"{sign}{whole:,} {top}/{bottom}",
            rf"{sign}{whole}\dfrac{{{top}}}{{{bottom}}}",
        ]
        assert {final_answer(f"#### {spelling} km") for spelling in spellings} == {value}


def test_any_decimal_survives_every_way_to_write_it() -> None:
    dice = random.Random(8)
    for _ in range(500):
        cents, sign = dice.randint(0, 10**11), dice.choice(["", "-", "−"])
        value = Fraction(cents, 100) * (-1 if sign else 1)
        number = f"{cents // 100:,}.{cents % 100:02}"
        plain = number.replace(",", "")
        continental = number.translate(str.maketrans(",.", ".,"))
        spellings = [number, plain, f"${plain}", f"{plain}0", f"{cents}e-2", rf"\${number}"]
        if cents >= 10**5:
            spellings.append(continental)
        assert {final_answer(f"It is {sign}{spelling} units") for spelling in spellings} == {value}
