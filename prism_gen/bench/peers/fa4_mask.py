"""The causal mask inside a diagonal block, in the form that FlashAttention-4's block-sparse kernel takes.

Owns functions that CuTe DSL reads from this file's source. Imported only by fa4.py where FA4 is installed.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import cutlass
from cutlass import cute
from flash_attn.cute.utils import scalar_to_ssa


@cache
def causal(rows_per_position: int) -> Callable[..., Any]:
    """True where the key is visible: the last query sees the last key. One function per number, so one compile."""

    @cute.jit  # type: ignore[untyped-decorator]
    def mask(  # type: ignore[no-untyped-def]
        batch: cute.TensorSSA,
        head: cute.TensorSSA,
        row: cute.TensorSSA,
        key: cute.TensorSSA,
        seqlen_info,  # noqa: ANN001 an FA4 object without a public type
        aux_tensors: None,
    ) -> cute.TensorSSA:
        prefix = scalar_to_ssa(seqlen_info.seqlen_k - seqlen_info.seqlen_q // rows_per_position, cutlass.Int32)
        return key <= row // scalar_to_ssa(rows_per_position, cutlass.Int32) + prefix

    return mask  # type: ignore[no-any-return]
