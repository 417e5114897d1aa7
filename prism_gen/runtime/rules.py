"""The rules of a selection beyond its thresholds: what shares a list, what calibrates, what a threshold counts.

Owns SelectRules. Must not know tensors or kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from prism_gen.model import CalibrationMode, CutKind, Share

__all__ = ["CutKind"]  # what callers take from here and stands elsewhere

CUT_KINDS: tuple[CutKind, ...] = ("top_p", "top_k", "density")  # in the order of CutKind in templates/select/params.h


@dataclass(frozen=True)
class SelectRules:
    """How rows choose (method.md steps 3 and 5); the defaults are the paper's.

    force_sink, force_recent: always keep key block 0, the diagonal blocks. share: one list per q head, or per KV group.
    calibration: over the whole call, or over what a query block sees. cut: what a threshold is, the mass to reach, a
    number of blocks, or a share of the visible blocks. max_blocks: capacity of a list; None: all key blocks fit.
    """

    force_sink: bool = True
    force_recent: bool = True
    share: Share = "head"
    calibration: CalibrationMode = "sequence"
    cut: CutKind = "top_p"
    max_blocks: int | None = None

    def num_lists(self, num_q_heads: int, num_kv_heads: int) -> int:
        """Lists per query block: one per q head, or one per KV head."""
        return num_q_heads if self.share == "head" else num_kv_heads

    def kernel_arguments(self) -> tuple[int, int, int, int, int]:
        """force_sink, force_recent, share_group, prefix_calibration, cut_kind, as select takes them."""
        return (
            int(self.force_sink),
            int(self.force_recent),
            int(self.share == "group"),
            int(self.calibration == "prefix"),
            CUT_KINDS.index(self.cut),
        )

    @classmethod
    def of_kernel_arguments(cls, *arguments: int, max_blocks: int | None = None) -> SelectRules:
        """The rules whose kernel_arguments these are."""
        sink, recent, share_group, prefix_calibration, cut_kind = arguments
        return cls(
            force_sink=bool(sink),
            force_recent=bool(recent),
            share="group" if share_group else "head",
            calibration="prefix" if prefix_calibration else "sequence",
            cut=CUT_KINDS[cut_kind],
            max_blocks=max_blocks,
        )


PAPER_RULES = SelectRules()
