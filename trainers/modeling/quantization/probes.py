"""The texts on which a model with a quantized base is compared with the published one."""

from transformers import PreTrainedTokenizerBase

from trainers.exporting.reference import PROMPTS

COMPLETION_TOKENS = 16


def render_probes(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the token ids of fixed prompts, which the model completes.

    No row of the data is among them: they are published with the adapter.
    """
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in _render(tokenizer)]


def _render(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if not tokenizer.chat_template:
        return list(PROMPTS)
    return [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
        )
        for text in PROMPTS
    ]
