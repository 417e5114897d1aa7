"""Units spread over the GPUs of a Ray cluster: one task a unit, lines back through a queue.

Owns what is asked of Ray (the extra `ray`). Must not judge or time.
"""

from __future__ import annotations

import io
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prism_gen.errors import UnsupportedError
from prism_gen.tune.execute import MakeStand, Plan, after_death
from prism_gen.tune.journal import Ended, Journal, Line, Machine
from prism_gen.tune.unit import Memory, Unit, tune_unit

POLL_S = 0.2
DRAIN = 1000  # lines taken of the queue at once


def _ray() -> Any:
    """Ray, connected to the cluster that it finds or to one of this machine. Raises: UnsupportedError without it."""
    try:
        import ray  # noqa: PLC0415 an optional extra, of hundreds of megabytes
    except ModuleNotFoundError:
        raise UnsupportedError("--executor ray needs ray", fix="pip install 'prism-gen[ray]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    return ray


def machine_of_cluster(num_gpus: int) -> Machine:
    """What a worker runs on; the GPUs of the cluster are taken to be of one kind."""
    ray = _ray()
    return ray.get(ray.remote(num_gpus=num_gpus)(_machine).remote(num_gpus))  # type: ignore[no-any-return]


def _machine(num_gpus: int) -> Machine:
    import torch  # noqa: PLC0415 on the worker

    from prism_gen.tune.machine import this_machine  # noqa: PLC0415

    return this_machine(torch.device("cuda", 0) if num_gpus else torch.device("cpu"))


def run_ray(plan: Plan, on_line: Callable[[Line], None], *, num_gpus: int) -> None:
    """Every unit of the plan as a task that holds num_gpus GPUs. The bundle travels with the tasks."""
    ray = _ray()
    from ray.util.queue import Queue  # noqa: PLC0415 comes with ray

    journal, queue = Journal(plan.journal), Queue()
    packed = ray.put(pack_bundle(plan.bundle)) if plan.bundle else None
    task = ray.remote(num_gpus=num_gpus, max_retries=0)(_work)
    running: dict[Any, Unit] = {}
    heard: dict[str, float] = {}

    def submit(unit: Unit) -> None:
        lines = [line for line in journal.of_machine(plan.machine)[0] if getattr(line, "unit", "") == unit.name]
        running[task.remote(unit, plan.make_stand, packed, lines, queue, plan.deadline)] = unit

    def drain() -> None:
        while not queue.empty():
            for line in queue.get_nowait_batch(min(DRAIN, queue.qsize())):
                heard[getattr(line, "unit", "")] = time.monotonic()
                journal.add(line)
                on_line(line)

    for unit in plan.units:
        submit(unit)
    while running:
        done, _ = ray.wait(list(running), timeout=POLL_S)
        drain()
        for ref in done:
            unit = running.pop(ref)
            try:
                ray.get(ref)
            except ray.exceptions.RayError as error:
                line = after_death(unit, journal.of_machine(plan.machine)[0], f"died: {type(error).__name__}")
                journal.add(line)
                on_line(line)
                if not isinstance(line, Ended):
                    submit(unit)
        for ref, unit in running.items():
            if time.monotonic() - heard.get(unit.name, time.monotonic()) > plan.stall_s:
                heard.pop(unit.name)
                ray.cancel(ref, force=True)
    queue.shutdown()


def _work(
    unit: Unit, make_stand: MakeStand, packed: bytes | None, lines: Sequence[Line], queue: Any, deadline: float
) -> None:
    """The task. Lines are put one by one, so that what a crash leaves is known."""
    with tempfile.TemporaryDirectory(prefix="prism-gen-tune-") as scratch:
        bundle = unpack_bundle(packed, Path(scratch)) if packed else None
        tune_unit(unit, make_stand(bundle), Memory(unit, lines), queue.put, lambda: time.time() >= deadline)


def pack_bundle(bundle: Path) -> bytes:
    """manifest.json and the files of lib/, as a zip in memory: workers share no file system with the driver."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for path in (bundle / "manifest.json", *sorted((bundle / "lib").rglob("*"))):
            if path.is_file():
                archive.write(path, path.relative_to(bundle))
    return buffer.getvalue()


def unpack_bundle(packed: bytes, folder: Path) -> Path:
    """Files only, all of them below `folder`: zipfile sees to that in every Python, tarfile where it knows filters."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(folder)
    return folder
