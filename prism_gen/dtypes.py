"""Element types that kernels read and write: one row each.

Owns the row table. Must not import torch; runtime/ maps names to torch dtypes.
"""

from __future__ import annotations

from typing import NamedTuple

from prism_gen.errors import UnsupportedError


class DType(NamedTuple):
    """One element type. element: the C++ type, num_bytes: bytes per element."""

    name: str
    element: str
    num_bytes: int


DTYPES: dict[str, DType] = {
    row.name: row
    for row in (
        DType("bf16", "cutlass::bfloat16_t", 2),
        DType("fp16", "cutlass::half_t", 2),
    )
}


def dtype(name: str) -> DType:
    """The row called `name`. Raises: UnsupportedError if there is none."""
    if name not in DTYPES:
        raise UnsupportedError(
            f"no dtype {name!r}",
            exists=", ".join(DTYPES),
            fix="choose one of these, or add a row to prism_gen/dtypes.py",
        )
    return DTYPES[name]
