"""Start a converter of llama.cpp with the trainers' packages, and a pre-tokenizer that its list lacks.

python gguf_converter.py LLAMA_CPP SCRIPT PRE_TOKENIZER_OR_EMPTY ARGUMENTS…
"""

import runpy
import sys
from pathlib import Path


def main(llama_cpp: str, script: str, pre_tokenizer: str, *arguments: str) -> None:
    """Run the script as if it had been started by its path."""
    sys.path[:0] = [llama_cpp, str(Path(llama_cpp) / "gguf-py")]
    if pre_tokenizer:
        from conversion import base

        base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre_tokenizer
    path = str(Path(llama_cpp) / script)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
