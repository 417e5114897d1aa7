"""What a compiled kernel must prove, on the words of ptxas and cuobjdump."""

from __future__ import annotations

import msgspec
import pytest

from prism_gen.gates import Figures, failures, measure, smem_bytes
from prism_gen.specialize import specialize

PTXAS = """ptxas warning : Registers are spilled in function '_Z1gPfi', {stores} bytes spill stores, 8 bytes spill loads
ptxas info    : Compiling entry function '_Z1gPfi' for 'sm_90a'
ptxas info    : Function properties for _Z1gPfi
    {stack} bytes stack frame, {stores} bytes spill stores, 8 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compiling entry function '_Z1fPf' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 64 bytes smem
"""
SASS = """	code for sm_90a
        /*0000*/                   LDC R1, c[0x0][0x28] ;      /* 0x00000a00ff017b82 */
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0020*/              @!P0 UTMALDG.4D [UR8], [UR4] ;
        /*0030*/              @!UP0 UTMALDG.4D [UR8], [UR4] ;
        /*12f0*/                   USETMAXREG.DEALLOC.CTAPOOL 0x20 ;
        /*1300*/                   STL.64 [R1], R2 ;
        /*1310*/               @P1 LDL R0, [R1+0x4] ;
"""
GOOD = Figures(
    registers=168,
    static_smem_bytes=0,
    stack_bytes=0,
    spill_bytes=0,
    instructions={"HGMMA": 8, "UTMALDG": 2, "USETMAXREG": 2, "LDL": 0, "STL": 0},
)


@pytest.fixture
def specs(make_model):
    """Family -> spec."""
    return {spec.family: spec for spec in specialize(make_model(), ["sm90"])}


def test_figures_take_the_most_of_any_entry_and_the_sum_of_spills(specs):
    figures = measure(specs["attend"], PTXAS.format(stack=256, stores=16), SASS)
    assert figures == Figures(
        registers=168,
        static_smem_bytes=1024,
        stack_bytes=256,
        spill_bytes=24,
        instructions={"HGMMA": 1, "UTMALDG": 2, "USETMAXREG": 1, "LDL": 1, "STL": 1},
    )


def test_good_kernel_passes(specs):
    assert failures(specs["attend"], GOOD, "ptxas info    : Used 168 registers") == []


def test_families_without_tensor_cores_need_none_of_their_instructions(specs):
    plain = msgspec.structs.replace(GOOD, instructions={**GOOD.instructions, "HGMMA": 0, "UTMALDG": 0, "USETMAXREG": 0})
    assert failures(specs["pool"], plain, "") == []
    assert len(failures(specs["attend"], plain, "")) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"registers": 0}, "no kernel"),
        ({"spill_bytes": 4}, "4 bytes of register spills"),
        ({"stack_bytes": 8}, "8 bytes of stack"),
        ({"static_smem_bytes": 200_000}, "gives a CTA 232448"),
        ({"instructions": {**GOOD.instructions, "STL": 3}}, "3 STL"),
        ({"instructions": {**GOOD.instructions, "HGMMA": 0}}, "no HGMMA"),
    ],
    ids=["empty", "spills", "stack", "shared memory", "local memory", "wrong target"],
)
def test_gate_catches(specs, change, words):
    (failure,) = failures(specs["attend"], msgspec.structs.replace(GOOD, **change), "")
    assert words in failure


@pytest.mark.parametrize(
    "complaint",
    [
        "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count.",
        "ptxas info    : (C7509) wgmma.mma_async instructions are serialized due to the presence of Extern calls",
        "ptxas info    : (C7519) warpgroup.arrive is injected in around line 7 by compiler to allow use of",
    ],
    ids=["setmaxnreg ignored", "wgmma serialised", "fence put back"],
)
def test_ptxas_complaint_is_a_failure(specs, complaint):
    assert failures(specs["attend"], GOOD, f"before\n{complaint}\nafter") == [complaint]


def test_shared_memory_is_static_plus_dynamic(specs):
    with_static = msgspec.structs.replace(GOOD, static_smem_bytes=512)
    assert smem_bytes(specs["attend"], with_static) - smem_bytes(specs["attend"], GOOD) == 512
    assert smem_bytes(specs["pool"], with_static) == 512
