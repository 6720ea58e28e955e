"""The examples of many rows at once: templates rendered in a child, texts tokenized in a batch.

The tokens and labels equal those of `render_example`, which is slower: it renders each row three times and
tokenizes it twice, through several layers of Python.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tokenizers import AddedToken, Tokenizer

from trainers.rendering.cache.spec import RenderSpec
from trainers.rendering.plain_text import join_texts
from trainers.rendering.render import (
    Example,
    PromptCompletion,
    check_size,
    common_prefix_length,
    render_document,
    render_example,
    render_prompt_text,
    require_text,
    split_document,
    template_rejects,
    tokenize_prompt,
)
from trainers.rendering.template_renderer import Chat, RenderedChat, TemplateRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The chats of one request share the limits of the template's child.
MAX_CHATS = 128
MAX_CHARACTERS = 2**19
# A prompt usually ends in the same few characters, after the last special token.
MAX_CACHED_TAILS = 4096
MAX_CACHED_CHARACTERS = 256


RenderedPrompt = tuple[str, list[int]]
"""The text of a prompt and its tokens."""


class ExampleRenderer(Protocol):
    """Renders rows as tokens."""

    def examples(self, pairs: Sequence[PromptCompletion]) -> list[list[Example]]:
        """Return the example of each pair, or the pieces of a document.

        Raises RowTooLong, DatasetInvalid, TemplateMissing or ChatTemplateError.
        """
        ...

    def prompts(self, pairs: Sequence[PromptCompletion]) -> list[RenderedPrompt]:
        """Return each prompt with the generation prompt; raises the same."""
        ...


class TransformersRenderer:
    """Renders row by row, for tokenizers that encode by code of their own."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length

    def examples(self, pairs: Sequence[PromptCompletion]) -> list[list[Example]]:
        """Return the example of each pair, or the pieces of a document."""
        return [
            render_document(pair, self._tokenizer, self._max_length)
            if pair.is_document
            else [render_example(pair, self._tokenizer, self._max_length)]
            for pair in pairs
        ]

    def prompts(self, pairs: Sequence[PromptCompletion]) -> list[RenderedPrompt]:
        """Return each prompt."""
        return [
            (render_prompt_text(pair, self._tokenizer), tokenize_prompt(pair, self._tokenizer))
            for pair in pairs
        ]


class BatchRenderer:
    """Renders batches; the template's child starts with the first one."""

    def __init__(self, spec: RenderSpec, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._spec, self._tokenizer = spec, tokenizer
        self._templates = TemplateRenderer()
        self._anchors = _find_anchors(tokenizer)
        self._tail_ids = lru_cache(MAX_CACHED_TAILS)(self._encode)

    def close(self) -> None:
        """End the template's child."""
        self._templates.close()

    def examples(self, pairs: Sequence[PromptCompletion]) -> list[list[Example]]:
        """Return the example of each pair, or the pieces of a document."""
        for pair in pairs:
            if not pair.is_document:
                check_size(pair.row, [*pair.prompt, *pair.completion], self._spec.max_length)
        chats = [
            Chat([*pair.prompt, *pair.completion], tools=pair.tools, prompt_messages=len(pair.prompt))
            for pair in pairs
        ]
        rendered = self._render(pairs, chats)
        ids = self._encode_all([chat.text for chat in rendered])
        return [self._pieces(*each) for each in zip(pairs, rendered, ids, strict=True)]

    def prompts(self, pairs: Sequence[PromptCompletion]) -> list[RenderedPrompt]:
        """Return each prompt."""
        for pair in pairs:
            check_size(pair.row, pair.prompt)
        chats = [Chat(pair.prompt, tools=pair.tools, add_generation_prompt=True) for pair in pairs]
        texts = [chat.text for chat in self._render(pairs, chats)]
        return list(zip(texts, self._encode_all(texts), strict=True))

    def _render(self, pairs: Sequence[PromptCompletion], chats: Sequence[Chat]) -> list[RenderedChat]:
        by_template = [
            chat
            for pair, chat in zip(pairs, chats, strict=True)
            if not pair.is_document and self._template(chat) is not None
        ]
        rendered = iter([chat for batch in _split(by_template) for chat in self._render_batch(batch)])
        texts = []
        for pair, chat in zip(pairs, chats, strict=True):
            is_plain = pair.is_document or self._template(chat) is None
            texts.append(self._render_plain(pair, chat) if is_plain else next(rendered))
            if (reason := texts[-1].rejected) is not None:
                raise template_rejects(pair.row, reason)
        return texts

    def _render_batch(self, chats: Sequence[Chat]) -> list[RenderedChat]:
        template = self._template(chats[0])
        assert template is not None
        return self._templates.render_all(template, chats, self._spec.variables)

    def _template(self, chat: Chat) -> str | None:
        return self._spec.template(has_tools=chat.tools is not None)

    def _render_plain(self, pair: PromptCompletion, chat: Chat) -> RenderedChat:
        require_text(pair)

        def join(messages: list[dict[str, Any]], is_prompt: bool) -> str:
            start, end = self._spec.text_start, self._spec.text_end
            return join_texts(start, end, pair.row, messages, pair.tools, is_prompt=is_prompt)

        text = join(list(chat.messages), chat.add_generation_prompt)
        if chat.prompt_messages is None:
            return RenderedChat(text)
        return RenderedChat(text, join(list(chat.messages[: chat.prompt_messages]), True))

    def _pieces(self, pair: PromptCompletion, chat: RenderedChat, ids: list[int]) -> list[Example]:
        if not pair.is_document:
            return [self._example(pair, chat, ids, self._spec.max_length)]
        whole = self._example(pair, chat, ids, sys.maxsize)
        return split_document(whole, self._spec.max_length, self._decode)

    def _example(
        self, pair: PromptCompletion, chat: RenderedChat, ids: list[int], max_length: int
    ) -> Example:
        assert chat.prompt is not None
        start, is_prefix = self._find_start(chat.text, chat.prompt, ids)
        return Example(
            row=pair.row,
            text=chat.text,
            input_ids=ids[:max_length],
            loss_start=min(start, max_length),
            truncated=len(ids) > max_length,
            prompt_is_prefix=is_prefix,
            length=len(ids),
        )

    def _find_start(self, text: str, prompt: str, ids: list[int]) -> tuple[int, bool]:
        """Return the first token in which prompt and conversation differ, and if that is after the prompt.

        A tokenizer splits its text at special tokens first. So up to the last one in the prompt, the tokens
        of the prompt are those of the conversation, and only what follows it is tokenized again.
        """
        same, tail = 0, prompt
        if text.startswith(prompt) and (anchor := self._find_anchor(prompt, ids)) is not None:
            same, tail = anchor[0], prompt[anchor[1] :]
        tail_ids = self._tail_ids(tail) if len(tail) < MAX_CACHED_CHARACTERS else self._encode(tail)
        end = same + len(tail_ids)
        if ids[same:end] == tail_ids:
            return end, True
        return same + common_prefix_length(tail_ids, ids[same:end]), False

    def _find_anchor(self, prompt: str, ids: list[int]) -> tuple[int, int] | None:
        """Return the last special token in the prompt, as its position among the tokens and its character.

        There is none if the tokens do not begin with the special tokens that the prompt contains, as where a
        longer added token contains one.
        """
        found = list(self._anchors.pattern.finditer(prompt))
        if not found:
            return None
        positions = [at for at, token in enumerate(ids) if token in self._anchors.contents][: len(found)]
        contents = [self._anchors.contents[ids[at]] for at in positions]
        if contents != [match[0] for match in found]:
            return None
        return positions[-1], found[-1].start()

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def _encode(self, text: str) -> list[int]:
        return self._encode_all([text])[0]

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        # "Fast" leaves out the positions of characters, which take a third of the time.
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def can_batch(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether a tokenizer adds nothing to what the library `tokenizers` and the template do."""
    from transformers import PreTrainedTokenizerBase
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    kind = type(tokenizer)
    return (
        isinstance(tokenizer, TokenizersBackend)
        and kind.__call__ is PreTrainedTokenizerBase.__call__
        and kind.apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
        and kind._encode_plus is TokenizersBackend._encode_plus
        and not tokenizer.split_special_tokens
    )


class _Anchors(NamedTuple):
    """The special tokens that split a text without an effect on what is around them."""

    contents: dict[int, str]
    pattern: re.Pattern[str]


def _find_anchors(tokenizer: Tokenizer) -> _Anchors:
    added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
    contents = {
        number: token.content
        for number, token in added.items()
        if token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    }
    longest_first = sorted(filter(None, contents.values()), key=len, reverse=True)
    # Without special tokens, a pattern that matches nothing.
    return _Anchors(contents, re.compile("|".join(map(re.escape, longest_first)) or r"(?!)"))


def _split(chats: Sequence[Chat]) -> Iterator[list[Chat]]:
    """Yield batches of chats that use the same template and are bounded in size."""
    batch: list[Chat] = []
    characters = 0
    for chat in chats:
        size = sum(len(message.get("content") or "") for message in chat.messages)
        is_full = len(batch) == MAX_CHATS or characters + size > MAX_CHARACTERS
        if batch and (is_full or (batch[0].tools is None) != (chat.tools is None)):
            yield batch
            batch, characters = [], 0
        batch.append(chat)
        characters += size
    if batch:
        yield batch
