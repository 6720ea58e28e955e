"""Families of models: how each writes a conversation, for weights that come without a chat template.

A model's own template always goes first; it is saved with what is trained on it and served with that. What
stands here helps base models, whose tokenizers know the marks of their family but carry no template. The
marks are those that the families' instruct models publish in their tokenizer_config.json.
"""

from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class SystemTurn(StrEnum):
    """Where a family puts a system message."""

    own_turn = "own_turn"
    in_user_turn = "in_user_turn"


@dataclass(frozen=True)
class Family:
    """One way to write a conversation.

    `model_types` are those of config.json; `marks` are the tokens by which the tokenizer shows that it was
    made for this form, the first of which ends a turn.
    """

    name: str
    model_types: frozenset[str]
    marks: tuple[str, ...]
    system: SystemTurn
    template: str

    @property
    def end_of_turn(self) -> str:
        """The token after which an answer is complete."""
        return self.marks[0]


# Tools change the form of a conversation, and to leave them out in silence would be worse than to refuse.
_NO_TOOLS = "{%- if tools %}{{ raise_exception('this chat template knows no tools') }}{%- endif %}"
# A system message becomes the beginning of the first user turn.
_FOLD = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] + '\n\n' %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
)
_CHECK_TURNS = (
    "{%- if message['role'] != ('user' if loop.index0 is even else 'assistant') %}"
    "{{ raise_exception('user and assistant must take turns, after at most one system message') }}"
    "{%- endif %}"
)


def _turns(opening: str, closing: str) -> str:
    """Every message as a turn of its own, between marks in which ROLE stands for the role."""
    before = "'" + opening.replace("ROLE", "' + message['role'] + '") + "'"
    return (
        "{%- for message in messages %}{{ " + before + " }}"
        "{%- if message['role'] == 'assistant' %}{%- generation %}{{ message['content'] }}{{ '"
        + closing
        + "' }}"
        "{%- endgeneration %}{%- else %}{{ message['content'] }}{{ '" + closing + "' }}{%- endif %}"
    )


_PROMPT = "{%- if add_generation_prompt %}{{ 'OPENING' }}{%- endif %}"

QWEN = Family(
    name="qwen",
    model_types=frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe"}),
    marks=("<|im_end|>", "<|im_start|>"),
    system=SystemTurn.own_turn,
    template=_NO_TOOLS
    + _turns("<|im_start|>ROLE\n", "<|im_end|>")
    + "{{ '\n' }}{%- endfor %}"
    + _PROMPT.replace("OPENING", "<|im_start|>assistant\n"),
)
LLAMA = Family(
    name="llama",
    model_types=frozenset({"llama"}),
    marks=("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    system=SystemTurn.own_turn,
    template=_NO_TOOLS
    + "{{ bos_token }}"
    + _turns("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>")
    + "{%- endfor %}"
    + _PROMPT.replace("OPENING", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
)
PHI = Family(
    name="phi",
    model_types=frozenset({"phi3"}),
    marks=("<|end|>", "<|user|>", "<|assistant|>"),
    system=SystemTurn.own_turn,
    template=_NO_TOOLS
    + _turns("<|ROLE|>\n", "<|end|>")
    + "{{ '\n' }}{%- endfor %}"
    + _PROMPT.replace("OPENING", "<|assistant|>\n"),
)
MISTRAL = Family(
    name="mistral",
    model_types=frozenset({"mistral", "mixtral"}),
    marks=("</s>", "[INST]", "[/INST]"),
    system=SystemTurn.in_user_turn,
    template=_NO_TOOLS
    + "{{ bos_token }}"
    + _FOLD
    + "{%- for message in turns %}"
    + _CHECK_TURNS
    + "{%- if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + message['content'] + '[/INST]' }}"
    "{%- else %}{%- generation %}{{ ' ' + message['content'] }}{{ '</s>' }}{%- endgeneration %}{%- endif %}"
    "{%- endfor %}",
)
GEMMA = Family(
    name="gemma",
    model_types=frozenset({"gemma", "gemma2", "gemma3", "gemma3_text"}),
    marks=("<end_of_turn>", "<start_of_turn>"),
    system=SystemTurn.in_user_turn,
    template=_NO_TOOLS
    + "{{ bos_token }}"
    + _FOLD
    + "{%- for message in turns %}"
    + _CHECK_TURNS
    + "{%- if message['role'] == 'user' %}"
    "{{ '<start_of_turn>user\n' + (system if loop.first else '') + message['content'] + '<end_of_turn>' }}"
    "{%- else %}{{ '<start_of_turn>model\n' }}"
    "{%- generation %}{{ message['content'] }}{{ '<end_of_turn>' }}{%- endgeneration %}{%- endif %}"
    "{{ '\n' }}{%- endfor %}" + _PROMPT.replace("OPENING", "<start_of_turn>model\n"),
)
FAMILIES = (QWEN, LLAMA, MISTRAL, PHI, GEMMA)


def detect(model_type: str, vocabulary: Container[str]) -> Family | None:
    """The family of a model, if its config is of it and its vocabulary holds all marks of its form.

    The architecture alone says little: `llama` is that of many models whose conversations look otherwise.
    """
    for family in FAMILIES:
        if model_type in family.model_types and all(mark in vocabulary for mark in family.marks):
            return family
    return None


def complete(tokenizer: Any, model_type: str) -> Family | None:
    """Give a tokenizer without a chat template that of its family, and the token that ends its turns.

    Both are saved with what is trained, so that it is served as it was trained. None if no family fits.
    """
    family = detect(model_type, tokenizer.get_vocab())
    if family is not None:
        tokenizer.chat_template = family.template
        tokenizer.eos_token = family.end_of_turn
    return family
