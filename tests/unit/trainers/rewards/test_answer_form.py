"""The form of a final answer."""

import pytest

from trainers.configs.rewards import AnswerForm
from trainers.rewards.answer_form import find_form_fault

KEPT = {
    AnswerForm.hashes: ["3 + 4 = 7\n#### 7", "#### 7", "a\n#### -1,000.5 km\n", "a\n#### 50%"],
    AnswerForm.boxed: [r"So \boxed{7}", r"So $\boxed{\frac{1}{2}}$.", "\\[ \\boxed{7} \\]\n"],
    AnswerForm.sentence: [
        "It is so. The answer is 7.",
        "The final answer is: **7** apples.",
        "정답은 7입니다.",
    ],
}
BROKEN = {
    AnswerForm.hashes: [
        "7",
        "#### 7\n#### 7",
        "so #### 7",
        "#### 7\nDone.",
        "#### seven",
        "#### 7 or maybe 8",
        "#####7",
    ],
    AnswerForm.boxed: [
        "7",
        r"\boxed{7} \boxed{7}",
        r"\boxed{7",
        r"\boxed{x}",
        r"\boxed{7} as asked",
        r"\boxed{(1,2)}",
    ],
    AnswerForm.sentence: [
        "7",
        "The answer is 7. The answer is 7.",
        "The answer is 7.\nDone, after 3 steps.",
        "The answer is x.",
    ],
}


@pytest.mark.parametrize(("form", "text"), [(form, text) for form in KEPT for text in KEPT[form]])
def test_asked_form_has_no_fault(form: AnswerForm, text: str) -> None:
    assert find_form_fault(text, form) == ""


@pytest.mark.parametrize(("form", "text"), [(form, text) for form in BROKEN for text in BROKEN[form]])
def test_other_form_is_a_fault_in_a_sentence(form: AnswerForm, text: str) -> None:
    assert find_form_fault(text, form).endswith(".")
