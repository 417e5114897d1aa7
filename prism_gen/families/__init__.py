"""The registry of kernel families, and decoding of specs that name one.

Owns the list; a new family is one line here. Must not know schedules or templates' contents.
"""

from __future__ import annotations

from typing import Any

import msgspec

from prism_gen.arch import arch
from prism_gen.errors import BundleError, UnsupportedError
from prism_gen.families.attend import ATTEND, AttendProblem, AttendSchedule
from prism_gen.families.family import Family
from prism_gen.families.pool import POOL, PoolProblem, PoolSchedule
from prism_gen.families.rotate import ROTATE, RotateProblem, RotateSchedule
from prism_gen.families.score import SCORE, ScoreProblem, ScoreSchedule
from prism_gen.families.select import SELECT, SelectProblem, SelectSchedule, SelectShape
from prism_gen.families.subpool import SUBPOOL, SubpoolProblem, SubpoolSchedule
from prism_gen.spec import KernelSpec

FAMILIES: dict[str, Family] = {row.name: row for row in (POOL, ROTATE, SELECT, SUBPOOL, SCORE, ATTEND)}

__all__ = [
    "FAMILIES",
    "AttendProblem",
    "AttendSchedule",
    "Family",
    "PoolProblem",
    "PoolSchedule",
    "RotateProblem",
    "RotateSchedule",
    "ScoreProblem",
    "ScoreSchedule",
    "SelectProblem",
    "SelectSchedule",
    "SelectShape",
    "SubpoolProblem",
    "SubpoolSchedule",
    "context",
    "decode_spec",
    "family",
]


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A KernelSpec whose problem and schedule are not typed yet."""

    family: str
    arch: str
    problem: dict[str, Any]
    schedule: dict[str, Any]


def family(name: str) -> Family:
    """The family called `name`. Raises: UnsupportedError if there is none."""
    if name not in FAMILIES:
        raise UnsupportedError(f"no kernel family {name!r}", exists=", ".join(FAMILIES))
    return FAMILIES[name]


def decode_spec(obj: object) -> KernelSpec:
    """KernelSpec from parsed JSON (dicts, lists, numbers, strings), with typed problem and schedule.

    Raises: BundleError naming the bad field; UnsupportedError for an unknown family.
    """
    try:
        envelope = msgspec.convert(obj, _Envelope)
        row = family(envelope.family)
        return KernelSpec(
            family=envelope.family,
            arch=envelope.arch,
            problem=msgspec.convert(envelope.problem, row.problem),
            schedule=msgspec.convert(envelope.schedule, row.schedule),
        )
    except msgspec.ValidationError as error:
        raise BundleError(
            f"not a kernel spec: {error}", fix="rebuild the bundle with this version of prism_gen"
        ) from None


def context(spec: KernelSpec) -> dict[str, Any]:
    """Every constant that the family's template may use.

    Raises: UnsupportedError where the spec breaks one of the family's limits.
    """
    return {
        "arch_dir": arch(spec.arch).template_dir,
        "spec_json": spec.to_json(),
        **family(spec.family).context(spec),
    }
