"""Functions around each block of a network of mlx-lm.

Python looks `__call__` up on the class, so classes are patched, for all models of the process.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

Call = Callable[..., Any]


@contextmanager
def patched_blocks(network: nn.Module, wrap: Callable[[Call], Call]) -> Iterator[None]:
    """Replace the forward pass of each kind of block by `wrap` of it, inside the context."""
    originals = {kind: kind.__call__ for kind in {type(layer) for layer in network.layers}}
    for kind, original in originals.items():
        kind.__call__ = wrap(original)
    try:
        yield
    finally:
        for kind, original in originals.items():
            kind.__call__ = original


@contextmanager
def released_blocks(network: nn.Module) -> Iterator[None]:
    """Inside the context, a block's weights are read when it is computed, and lost after it.

    A network of `load_network` thus needs the memory of one block, and computes once.
    """

    def wrap(call: Call) -> Call:
        def released(block: nn.Module, *arguments: Any, **options: Any) -> Any:
            output = call(block, *arguments, **options)
            mx.eval(output)
            block.update(tree_map(lambda _: mx.array(0), block.parameters()))
            mx.clear_cache()
            return output

        return released

    with patched_blocks(network, wrap):
        yield
