"""Families of models, and the chat template of each for base models that have none of their own.

A model's own template takes precedence over that of its family, and one that a stage names over both. A
template is saved with the model that is trained with it and used again when that model is served.
"""

from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from trainers.configs.training import ChatTemplateName
from trainers.rendering.named_templates import TEMPLATES
from trainers.rendering.plain_text import TEXT_END, adds_bos


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
    system: SystemTurn
    template_name: ChatTemplateName

    @property
    def template(self) -> str:
        """The text of the family's template."""
        return TEMPLATES[self.template_name].text

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokens that the template uses."""
        return TEMPLATES[self.template_name].special_tokens

    @property
    def end_of_turn(self) -> str:
        """The token that ends a completion."""
        return self.special_tokens[0]


QWEN = ModelFamily(
    name="qwen",
    model_types=frozenset({"qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_5_text", "qwen3_5_moe_text"}),
    system=SystemTurn.own_turn,
    template_name=ChatTemplateName.chatml,
)
LLAMA = ModelFamily(
    name="llama",
    model_types=frozenset({"llama"}),
    system=SystemTurn.own_turn,
    template_name=ChatTemplateName.llama3,
)
PHI = ModelFamily(
    name="phi",
    model_types=frozenset({"phi3"}),
    system=SystemTurn.own_turn,
    template_name=ChatTemplateName.phi3,
)
MISTRAL = ModelFamily(
    name="mistral",
    model_types=frozenset({"mistral", "mixtral", "ministral3"}),
    system=SystemTurn.in_user_turn,
    template_name=ChatTemplateName.mistral,
)
GEMMA = ModelFamily(
    name="gemma",
    model_types=frozenset({"gemma", "gemma2", "gemma3_text"}),
    system=SystemTurn.in_user_turn,
    template_name=ChatTemplateName.gemma,
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

    Return None, and change nothing, if no family matches.
    """
    family = detect_family(model_type, tokenizer.get_vocab())
    if family is not None:
        set_named_template(tokenizer, family.template_name)
    return family


def set_named_template(tokenizer: Any, name: ChatTemplateName) -> list[str]:
    """Set a chat template and its end-of-turn token, which are saved with the trained model.

    Return the tokens of the template that the tokenizer lacks; then nothing is changed.
    """
    template, vocabulary = TEMPLATES[name], tokenizer.get_vocab()
    missing = [token for token in template.special_tokens if token not in vocabulary]
    if not missing:
        starts = "{{ bos_token }}" if template.follows_tokenizer and adds_bos(tokenizer) else ""
        tokenizer.chat_template = starts + template.text
        if template.special_tokens:
            setattr(tokenizer, TEXT_END, tokenizer.eos_token)
            tokenizer.eos_token = template.special_tokens[0]
    return missing


def suitable_templates(tokenizer: Any) -> list[ChatTemplateName]:
    """Return the templates whose tokens a tokenizer has."""
    vocabulary = tokenizer.get_vocab()
    return [
        name for name, template in TEMPLATES.items() if all(t in vocabulary for t in template.special_tokens)
    ]
