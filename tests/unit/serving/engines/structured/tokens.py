"""A tokenizer with a token for each byte, and for the markers of calls."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END = "<|end|>"
MARKERS = [END, "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|tool_call>", "<tool_call|>", '<|"|>']
MARKERS += ["<|tool_call_start|>", "<|tool_call_end|>", "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"]


class ByteTokenizer:
    """A fast tokenizer with a token for each byte, and for each marker."""

    is_fast = True

    def __init__(self) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {character: number for number, character in enumerate(alphabet)}
        self.backend_tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.backend_tokenizer.decoder = decoders.ByteLevel()
        self.backend_tokenizer.add_special_tokens([AddedToken(text, special=True) for text in MARKERS])


TOKENIZER = ByteTokenizer()
SIZE: int = TOKENIZER.backend_tokenizer.get_vocab_size()
END_ID = int(TOKENIZER.backend_tokenizer.token_to_id(END) or 0)
