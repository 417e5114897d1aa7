"""The machine that figures are taken on, as the journal names it.

Owns which facts make two machines the same. Must not time.
"""

from __future__ import annotations

import torch

from prism_gen.runtime.environment import environment
from prism_gen.tune.journal import Machine


def this_machine(device: torch.device) -> Machine:
    """GPU, driver and CUDA of this process."""
    facts = environment(device)
    return Machine(gpu=facts["gpu"], driver=facts["driver"], cuda=facts["cuda"])
