"""Source -> shared library, in parallel, each distinct input once.

Owns the nvcc command and the content-addressed cache: <digest>/{*.cu, *.so, log.txt, result.json}, landed by one
rename; <digest>.lock, held while compiling; failed/<digest>/, the source and log of a failure.
Must not know models or bundles.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from prism_gen import gates
from prism_gen.errors import CompileError
from prism_gen.files import land, locked, sha256
from prism_gen.fingerprint import Source, flags
from prism_gen.spec import Struct
from prism_gen.toolchain import Toolchain

_RESULT = "result.json"
LOG_NAME = "log.txt"


class Artifact(Struct, frozen=True, kw_only=True):
    """One compiled kernel in the cache. sha256: of the library file. seconds: of the compile that made it."""

    digest: str
    library: str
    source: str
    sha256: str
    seconds: float
    figures: gates.Figures


class Event(Struct, frozen=True, kw_only=True):
    """Progress: `total` kernels are wanted; then for each, found in the cache, or started and done after `seconds`.

    failed: of compile_each, instead of done. warning: `name` is a sentence for people.
    """

    kind: Literal["plan", "hit", "start", "done", "failed", "warning"]
    name: str = ""
    seconds: float = 0.0
    total: int = 0


Report = Callable[[Event], None]
_T = TypeVar("_T")


class Compiler:
    """Compiles sources into one cache folder; safe beside any number of other processes on the same folder."""

    def __init__(self, *, toolchain: Toolchain, cache: Path, root: Path) -> None:
        self._toolchain = toolchain
        self._cache = cache.resolve()  # nvcc runs inside a scratch folder, where a relative TMPDIR is lost
        self._root = root
        self._children: set[subprocess.Popen[str]] = set()
        self._children_lock = threading.Lock()
        self._stopping = threading.Event()

    def compile_all(self, sources: Sequence[Source], *, jobs: int, report: Report) -> list[Artifact]:
        """One artifact per source, in order. jobs: compiles at once.

        Raises: CompileError for the first kernel that fails; those already running are finished and kept.
        """
        return self._in_pool(lambda source: self._obtain(source, report), sources, jobs=jobs, report=report)

    def compile_each(self, sources: Sequence[Source], *, jobs: int, report: Report) -> list[Artifact | CompileError]:
        """As compile_all, but a kernel that fails costs only itself: its error stands in its place."""

        def attempt(source: Source) -> Artifact | CompileError:
            try:
                return self._obtain(source, report)
            except CompileError as error:
                report(Event(kind="failed", name=source.spec.name))
                return error

        return self._in_pool(attempt, sources, jobs=jobs, report=report)

    def _in_pool(
        self, obtain: Callable[[Source], _T], sources: Sequence[Source], *, jobs: int, report: Report
    ) -> list[_T]:
        self._cache.mkdir(parents=True, exist_ok=True)
        self._remove_stale()
        report(Event(kind="plan", total=len(sources)))
        pool = ThreadPoolExecutor(max_workers=jobs)
        try:
            return list(pool.map(obtain, sources))
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):  # Ctrl-C or SIGTERM: nobody waits for the compilers
                self._stopping.set()
                self._kill_children()
            raise
        finally:
            pool.shutdown(wait=True)

    def folder(self, digest: str) -> Path:
        """Where an artifact's files lie."""
        return self._cache / digest

    def _obtain(self, source: Source, report: Report) -> Artifact:
        if artifact := self._cached(source):
            report(Event(kind="hit", name=source.spec.name))
            return artifact
        with locked(self._cache / f"{source.digest}.lock", give_up=self._stopping.is_set) as held:
            if not held:
                raise CompileError(f"stopped while {source.spec.name} waited for another process to compile it")
            if artifact := self._cached(source):  # another process compiled it while this one waited
                report(Event(kind="hit", name=source.spec.name))
                return artifact
            report(Event(kind="start", name=source.spec.name))
            artifact = self._compile(source)
        report(Event(kind="done", name=source.spec.name, seconds=artifact.seconds))
        return artifact

    def _cached(self, source: Source) -> Artifact | None:
        """The artifact if it is complete, its library is the one that was compiled, and it passes today's gates."""
        folder = self.folder(source.digest)
        try:
            artifact = msgspec.json.decode((folder / _RESULT).read_bytes(), type=Artifact)
            log = (folder / LOG_NAME).read_text(encoding="utf-8")
            intact = sha256(folder / artifact.library) == artifact.sha256 and (folder / artifact.source).is_file()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None
        return artifact if intact and not gates.failures(source.spec, artifact.figures, log) else None

    def _compile(self, source: Source) -> Artifact:
        """Compile in a scratch folder and land it by one rename. The caller holds the digest's lock."""
        scratch = Path(tempfile.mkdtemp(prefix=f"{source.digest}.tmp-", dir=self._cache))
        try:
            started = time.monotonic()
            artifact = self._compile_in(scratch, source, started)
            (scratch / _RESULT).write_bytes(msgspec.json.encode(artifact))
            land(scratch, self.folder(source.digest))
            return artifact
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _compile_in(self, scratch: Path, source: Source, started: float) -> Artifact:
        spec = source.spec
        cu, so = f"{spec.name}.cu", f"{spec.name}.so"
        (scratch / cu).write_text(source.text, encoding="utf-8")
        command = self.command(spec.arch, cu, so)
        rerun = f"cd {self.folder(source.digest)} && {shlex.join(command)}"
        status, output = self._run(command, scratch)
        (scratch / LOG_NAME).write_text(f"$ {rerun}\n{output}", encoding="utf-8")
        if status != 0:
            errors = [line for line in output.splitlines() if "error" in line.lower() or "fatal" in line.lower()]
            raise self._failure(scratch, source, f"nvcc failed on {spec.name} (exit status {status})", errors[:5])
        dump = [str(self._toolchain.cuobjdump), "-sass", so]
        status, sass = self._run(dump, scratch)
        if status != 0:
            raise self._failure(scratch, source, f"cuobjdump failed on {spec.name}", sass.splitlines()[:5])
        figures = gates.measure(spec, output, sass)
        if failures := gates.failures(spec, figures, output):
            raise self._failure(scratch, source, f"{spec.name} compiles, but fails its gates", failures)
        seconds = round(time.monotonic() - started, 1)
        return Artifact(
            digest=source.digest, library=so, source=cu, sha256=sha256(scratch / so), seconds=seconds, figures=figures
        )

    def command(self, arch_name: str, cu: str, so: str) -> list[str]:
        """The nvcc command line that turns `cu` into `so`."""
        tools = self._toolchain
        return [
            str(tools.nvcc),
            *flags(arch_name),
            f"-ccbin={tools.cxx}",
            f"-I{self._root.resolve()}",
            *("-isystem", str(tools.cutlass_include), "-isystem", str(tools.tvm_ffi_include)),
            *(f"-L{tools.cudart_dir}", "-o", so, cu),
        ]

    def _run(self, command: list[str], scratch: Path) -> tuple[int, str]:
        """(exit status, stdout and stderr together) of a child in its own process group, so that it dies whole."""
        with self._children_lock:
            if self._stopping.is_set():  # the others have been killed already
                raise CompileError(f"stopped before {command[0]} was started")
            child = subprocess.Popen(
                command,
                cwd=scratch,
                env=self._toolchain.environment(scratch),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._children.add(child)
        try:
            output, _ = child.communicate()
        finally:
            with self._children_lock:
                self._children.discard(child)
        return child.returncode, output

    def _kill_children(self) -> None:
        with self._children_lock:
            for child in self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)

    def _failure(self, scratch: Path, source: Source, what: str, details: list[str]) -> CompileError:
        """The error to raise, after keeping source and log where the reader can open them."""
        kept = self._cache / "failed" / source.digest
        kept.parent.mkdir(exist_ok=True)
        land(scratch, kept)
        command = self.command(source.spec.arch, f"{source.spec.name}.cu", "/dev/null")
        lines = [
            what,
            *(f"    {detail.strip()}" for detail in details),
            f"  source: {kept / source.spec.name}.cu",
            f"  log: {kept / LOG_NAME}",
            f"  command: cd {kept} && {shlex.join(command)}",
        ]
        return CompileError("\n".join(lines))

    def _remove_stale(self) -> None:
        """Remove scratch folders of processes that were killed: those whose digest's lock is free."""
        for scratch in self._cache.glob("*.tmp-*"):
            lock = self._cache / f"{scratch.name.split('.')[0]}.lock"
            with locked(lock, give_up=lambda: True) as free:
                if free:
                    shutil.rmtree(scratch, ignore_errors=True)
