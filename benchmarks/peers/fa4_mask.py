"""The causal mask inside a diagonal block, in the form that FlashAttention-4's block-sparse kernel takes.

Owns one function that CuTe DSL reads from this file's source. Imported only by fa4.py where FA4 is installed.
"""

import cutlass
from cutlass import cute
from flash_attn.cute.utils import scalar_to_ssa


@cute.jit  # type: ignore[untyped-decorator]
def causal(  # type: ignore[no-untyped-def]
    batch: cute.TensorSSA,
    head: cute.TensorSSA,
    query: cute.TensorSSA,
    key: cute.TensorSSA,
    seqlen_info,  # noqa: ANN001 an FA4 object without a public type
    aux_tensors: None,
) -> cute.TensorSSA:
    """True where the key is visible: the last query sees the last key."""
    prefix = scalar_to_ssa(seqlen_info.seqlen_k - seqlen_info.seqlen_q, cutlass.Int32)
    return key <= query + prefix
