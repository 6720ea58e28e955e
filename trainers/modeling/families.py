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
class ModelFamily:
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
_BOS = "{{ bos_token }}"


def _own_turns(opening: str, closing: str, before: str = "", after: str = "") -> str:
    """Every message is a turn between these marks, in which ROLE stands for the role."""
    opened = opening.replace("ROLE", "' + message['role'] + '")
    turn = "{{ message['content'] + '" + closing + "' }}"
    return (
        f"{_NO_TOOLS}{before}{{%- for message in messages %}}{{{{ '{opened}' }}}}"
        f"{{%- if message['role'] == 'assistant' %}}{{%- generation %}}{turn}{{%- endgeneration %}}"
        f"{{%- else %}}{turn}{{%- endif %}}{{{{ '{after}' }}}}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}{{{{ '{opening.replace('ROLE', 'assistant')}' }}}}{{%- endif %}}"
    )


def _in_user_turns(
    user: tuple[str, str], answered: str, answer: tuple[str, str], after: str = "", prompt: str = ""
) -> str:
    """User and assistant take turns between their marks; a system message begins the first user turn.

    `answered` stands before an answer and is not learned, `prompt` at the end of what is to be answered.
    """
    return (
        _NO_TOOLS + _BOS + "{%- if messages[0]['role'] == 'system' %}"
        "{%- set system = messages[0]['content'] + '\n\n' %}{%- set turns = messages[1:] %}"
        "{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
        "{%- for message in turns %}"
        "{%- if message['role'] != ('user' if loop.index0 is even else 'assistant') %}"
        "{{ raise_exception('user and assistant must take turns, after at most one system message') }}"
        "{%- endif %}"
        "{%- if message['role'] == 'user' %}"
        f"{{{{ '{user[0]}' + (system if loop.first else '') + message['content'] + '{user[1]}' }}}}"
        f"{{%- else %}}{{{{ '{answered}' }}}}{{%- generation %}}"
        f"{{{{ '{answer[0]}' + message['content'] + '{answer[1]}' }}}}{{%- endgeneration %}}{{%- endif %}}"
        f"{{{{ '{after}' }}}}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}{{{{ '{prompt}' }}}}{{%- endif %}}"
    )


QWEN = ModelFamily(
    name="qwen",
    model_types=frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe"}),
    marks=("<|im_end|>", "<|im_start|>"),
    system=SystemTurn.own_turn,
    template=_own_turns("<|im_start|>ROLE\n", "<|im_end|>", after="\n"),
)
LLAMA = ModelFamily(
    name="llama",
    model_types=frozenset({"llama"}),
    marks=("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    system=SystemTurn.own_turn,
    template=_own_turns("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", before=_BOS),
)
PHI = ModelFamily(
    name="phi",
    model_types=frozenset({"phi3"}),
    marks=("<|end|>", "<|user|>", "<|assistant|>"),
    system=SystemTurn.own_turn,
    template=_own_turns("<|ROLE|>\n", "<|end|>", after="\n"),
)
MISTRAL = ModelFamily(
    name="mistral",
    model_types=frozenset({"mistral", "mixtral"}),
    marks=("</s>", "[INST]", "[/INST]"),
    system=SystemTurn.in_user_turn,
    template=_in_user_turns(("[INST] ", "[/INST]"), "", (" ", "</s>")),
)
GEMMA = ModelFamily(
    name="gemma",
    model_types=frozenset({"gemma", "gemma2", "gemma3", "gemma3_text"}),
    marks=("<end_of_turn>", "<start_of_turn>"),
    system=SystemTurn.in_user_turn,
    template=_in_user_turns(
        ("<start_of_turn>user\n", "<end_of_turn>"),
        "<start_of_turn>model\n",
        ("", "<end_of_turn>"),
        after="\n",
        prompt="<start_of_turn>model\n",
    ),
)
FAMILIES = (QWEN, LLAMA, MISTRAL, PHI, GEMMA)


def detect(model_type: str, vocabulary: Container[str]) -> ModelFamily | None:
    """The family of a model, if its config is of it and its vocabulary holds all marks of its form.

    The architecture alone says little: `llama` is that of many models whose conversations look otherwise.
    """
    for family in FAMILIES:
        if model_type in family.model_types and all(mark in vocabulary for mark in family.marks):
            return family
    return None


def complete(tokenizer: Any, model_type: str) -> ModelFamily | None:
    """Give a tokenizer without a chat template that of its family, and the token that ends its turns.

    Both are saved with what is trained, so that it is served as it was trained. None if no family fits.
    """
    family = detect(model_type, tokenizer.get_vocab())
    if family is not None:
        tokenizer.chat_template = family.template
        tokenizer.eos_token = family.end_of_turn
    return family
