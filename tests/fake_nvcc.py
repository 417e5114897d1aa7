"""A stand-in for nvcc and cuobjdump in tests of the cache: counts its calls, waits, and writes a file.

It answers the dry run that names the toolchain's folder, and "compiles" by copying its input. Kernels are compiled for
real in tests/compile. Installed by the `fake_toolchain` fixture, which sets NAP_S and VERSION beside it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

HOME = Path(sys.argv[0]).resolve().parent
PTXAS = "ptxas info    : Used 32 registers, 1024 bytes smem\n    0 bytes stack frame, 0 bytes spill stores\n"
SASS = "        /*0000*/  HGMMA R0 ;\n        /*0010*/  UTMALDG R0 ;\n        /*0020*/  @!P0 USETMAXREG R0 ;\n"


def log_call(name: str) -> None:
    """Append one line; O_APPEND keeps lines of concurrent processes whole."""
    with (HOME / "calls.log").open("a", encoding="utf-8") as file:
        file.write(name + "\n")


def main() -> None:
    arguments = sys.argv[1:]
    if Path(sys.argv[0]).name == "cuobjdump":
        sys.stdout.write(SASS)
        return
    if "--dryrun" in arguments:
        log_call("dryrun")
        major, minor, build = (HOME / "VERSION").read_text(encoding="utf-8").split(".")
        sys.stdout.write(f"#$ _HERE_={HOME}\n-D__CUDACC_VER_MAJOR__={major} -D__CUDACC_VER_MINOR__={minor} ")
        sys.stdout.write(f"-D__CUDACC_VER_BUILD__={build}\n")
        return
    source, library = Path(arguments[-1]), Path(arguments[arguments.index("-o") + 1])
    text = source.read_text(encoding="utf-8")
    log_call(source.stem)
    (Path(os.environ["TMPDIR"]) / "tmpxft").touch()  # as nvcc does, from inside the scratch folder
    if "BROKEN" in text:
        sys.stdout.write(f'{source.name}(3): error: identifier "BROKEN" is undefined\n')
        sys.exit(2)
    half = len(text) // 2
    with library.open("w", encoding="utf-8") as file:  # in two parts, so that a kill can land between them
        file.write(text[:half])
        file.flush()
        time.sleep(float((HOME / "NAP_S").read_text(encoding="utf-8")))
        file.write(text[half:] + str(os.getpid()))
    sys.stdout.write(PTXAS)


main()
