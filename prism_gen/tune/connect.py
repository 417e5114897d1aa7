"""From an executor's name, a backend and a GPU to what a plan needs.

Owns that choice. Never falls back from one to another.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import torch

from prism_gen.runtime.connect import cuda_device
from prism_gen.tune.command import Executor
from prism_gen.tune.device import OpenStand
from prism_gen.tune.execute import MakeStand, run_local
from prism_gen.tune.journal import Machine
from prism_gen.tune.machine import this_machine
from prism_gen.tune.ray_executor import machine_of_cluster, run_ray


class Chosen(NamedTuple):
    """How to run a plan, how its processes open their stand, and on what machine."""

    execute: Executor
    make_stand: MakeStand
    machine: Machine


def connect(executor: Literal["local", "ray"], backend: Literal["cuda", "reference"], gpu: str | None) -> Chosen:
    """gpu: such as "cuda:1"; None is the current one. Raises: DeviceError, UnsupportedError as those it asks do."""
    num_gpus = int(backend == "cuda")
    if executor == "ray":  # a task sees the GPU that Ray gave it, as the first one
        stand = OpenStand("cuda:0" if num_gpus else "cpu")
        return Chosen(partial(run_ray, num_gpus=num_gpus), stand, machine_of_cluster(num_gpus))
    device = cuda_device(gpu) if num_gpus else torch.device("cpu")
    return Chosen(run_local, OpenStand(str(device)), this_machine(device))
