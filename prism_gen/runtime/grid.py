"""The block grid of one call: which key blocks a query block may see, and which it must.

Owns the arithmetic of lengths, block sizes, prefix and tails (method.md, Shapes and names). Must not know tensors.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockGrid:
    """Lengths and block sizes in tokens, 1 <= seqlen_q <= seqlen_k; causal, aligned at the bottom right."""

    seqlen_q: int
    seqlen_k: int
    block_size_q: int
    block_size_k: int

    @property
    def prefix(self) -> int:
        """Keys before the first query row: query row r sees keys 0 .. r + prefix."""
        return self.seqlen_k - self.seqlen_q

    @property
    def num_q_blocks(self) -> int:
        """Query blocks, the last may be short."""
        return -(-self.seqlen_q // self.block_size_q)

    @property
    def num_k_blocks(self) -> int:
        """Key blocks, the last may be short."""
        return -(-self.seqlen_k // self.block_size_k)

    def first_diagonal(self, q_block: int) -> int:
        """Key block that holds the causal boundary of the first row of q_block; every block before it is seen whole."""
        return (q_block * self.block_size_q + self.prefix) // self.block_size_k

    def num_visible(self, q_block: int) -> int:
        """Number of key blocks that the last valid row of q_block sees; the last of them is its last diagonal block."""
        last_row = min((q_block + 1) * self.block_size_q, self.seqlen_q) - 1
        return (last_row + self.prefix) // self.block_size_k + 1

    @property
    def total_visible(self) -> int:
        """Visible (query block, key block) pairs of one head: the denominator of density."""
        return sum(self.num_visible(i) for i in range(self.num_q_blocks))
