"""Training with torch's compiler, block by block: blocks that are alike, drop path included, are compiled once.

The model keeps its modules, names and weights. Evaluation runs as ever: its pictures come in many sizes, each of which
would be compiled anew.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from nota_seg.models.configuration import NotaSegConfig
from util.errors import InputError

VERSIONS = 256  # of one block's code that are compiled, for all shapes and rates of drop path; torch gives up after 8


def uncompiled() -> AbstractContextManager[None]:
    """Inside it nothing is compiled, nor what was compiled used."""
    return torch.compiler.set_stance("force_eager")


def compile_blocks(model: Any, device: torch.device) -> int:
    """Have the blocks and the decoder compiled when they first run.

    Args:
        model: A composition of ours.
        device: Where it will run.

    Returns:
        How many parts that are.

    Raises:
        InputError: A model of another library, or a compiler that does not work here.
    """
    if not isinstance(model.config, NotaSegConfig):
        raise InputError(f"train.compile: {type(model).__name__} is not made of blocks of ours; leave it out")
    try:
        torch.compile(nn.functional.gelu)(torch.zeros(16, device=device))
    except Exception as error:  # whatever its many layers raise
        first = str(error).strip().partition("\n")[0]
        raise InputError(
            f"train.compile: torch's compiler does not work here ({first}); install a C++ compiler or leave it out"
        ) from None
    from torch._dynamo import config  # not needed otherwise

    config.recompile_limit = VERSIONS
    parts = [block for stage in model.encoder.stages for block in stage.blocks]
    if hasattr(model, "decoder"):
        parts.append(model.decoder)
    for part in parts:
        part.compile(dynamic=False)
    return len(parts)
