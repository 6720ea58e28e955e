"""Chat templates of model families, for base models that have none of their own.

A model's own template always takes precedence. A template is saved with the model that is trained with it
and used again when that model is served. The special tokens are those that each family's instruct models
publish in their tokenizer_config.json.
"""

from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class SystemTurn(StrEnum):
    """The place of a system message in a family's format."""

    own_turn = "own_turn"
    in_user_turn = "in_user_turn"


@dataclass(frozen=True)
class ModelFamily:
    """A format of conversations.

    `model_types` are values of `model_type` in config.json. A tokenizer that contains all `special_tokens`
    was made for this format; the first of them ends a turn.
    """

    name: str
    model_types: frozenset[str]
    special_tokens: tuple[str, ...]
    system: SystemTurn
    template: str

    @property
    def end_of_turn(self) -> str:
        """The token that ends a completion."""
        return self.special_tokens[0]


# Tools change the format of a conversation, so a row with tools is refused rather than rendered without them.
_NO_TOOLS = "{%- if tools %}{{ raise_exception('this chat template does not support tools') }}{%- endif %}"
_BOS = "{{ bos_token }}"


def _own_turns(opening: str, closing: str, before: str = "", after: str = "") -> str:
    """Return a template in which every message is a turn; ROLE in `opening` is replaced by the role."""
    opened = opening.replace("ROLE", "' + message['role'] + '")
    turn = "{{ message['content'] + '" + closing + "' }}"
    return (
        f"{_NO_TOOLS}{before}{{%- for message in messages %}}{{{{ '{opened}' }}}}"
        f"{{%- if message['role'] == 'assistant' %}}{{%- generation %}}{turn}{{%- endgeneration %}}"
        f"{{%- else %}}{turn}{{%- endif %}}{{{{ '{after}' }}}}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}{{{{ '{opening.replace('ROLE', 'assistant')}' }}}}{{%- endif %}}"
    )


def _in_user_turns(
    user: tuple[str, str],
    opening: str,
    assistant: tuple[str, str],
    after: str = "",
    generation_prompt: str = "",
) -> str:
    """Return a template in which a system message is the start of the first user turn.

    `user` and `assistant` are the texts before and after a message. `opening` precedes an assistant turn and
    carries no loss.
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
        f"{{%- else %}}{{{{ '{opening}' }}}}{{%- generation %}}"
        f"{{{{ '{assistant[0]}' + message['content'] + '{assistant[1]}' }}}}{{%- endgeneration %}}"
        "{%- endif %}"
        f"{{{{ '{after}' }}}}{{%- endfor %}}"
        f"{{%- if add_generation_prompt %}}{{{{ '{generation_prompt}' }}}}{{%- endif %}}"
    )


QWEN = ModelFamily(
    name="qwen",
    model_types=frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe"}),
    special_tokens=("<|im_end|>", "<|im_start|>"),
    system=SystemTurn.own_turn,
    template=_own_turns("<|im_start|>ROLE\n", "<|im_end|>", after="\n"),
)
LLAMA = ModelFamily(
    name="llama",
    model_types=frozenset({"llama"}),
    special_tokens=("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    system=SystemTurn.own_turn,
    template=_own_turns("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", before=_BOS),
)
PHI = ModelFamily(
    name="phi",
    model_types=frozenset({"phi3"}),
    special_tokens=("<|end|>", "<|user|>", "<|assistant|>"),
    system=SystemTurn.own_turn,
    template=_own_turns("<|ROLE|>\n", "<|end|>", after="\n"),
)
MISTRAL = ModelFamily(
    name="mistral",
    model_types=frozenset({"mistral", "mixtral"}),
    special_tokens=("</s>", "[INST]", "[/INST]"),
    system=SystemTurn.in_user_turn,
    template=_in_user_turns(("[INST] ", "[/INST]"), "", (" ", "</s>")),
)
GEMMA = ModelFamily(
    name="gemma",
    model_types=frozenset({"gemma", "gemma2", "gemma3", "gemma3_text"}),
    special_tokens=("<end_of_turn>", "<start_of_turn>"),
    system=SystemTurn.in_user_turn,
    template=_in_user_turns(
        ("<start_of_turn>user\n", "<end_of_turn>"),
        "<start_of_turn>model\n",
        ("", "<end_of_turn>"),
        after="\n",
        generation_prompt="<start_of_turn>model\n",
    ),
)
FAMILIES = (QWEN, LLAMA, MISTRAL, PHI, GEMMA)


def detect_family(model_type: str, vocabulary: Container[str]) -> ModelFamily | None:
    """Return the family of a model, or None, by its architecture and the special tokens in its vocabulary.

    The architecture alone is not enough: many models with other formats have the model type `llama`.
    """
    for family in FAMILIES:
        if model_type in family.model_types and all(token in vocabulary for token in family.special_tokens):
            return family
    return None


def set_chat_template(tokenizer: Any, model_type: str) -> ModelFamily | None:
    """Set the chat template and the end-of-turn token of the tokenizer's family, and return the family.

    Both are saved with the trained model, so that it is served as it was trained. Return None, and change
    nothing, if no family matches.
    """
    family = detect_family(model_type, tokenizer.get_vocab())
    if family is not None:
        tokenizer.chat_template = family.template
        tokenizer.eos_token = family.end_of_turn
    return family
