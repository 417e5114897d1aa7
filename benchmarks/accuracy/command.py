"""What the commands of this folder have in common: a mistake in the arguments is a line on stderr and status 2.

Must not know any command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from prism_gen.errors import PrismError


def exit_status(run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """0 after run(options), or 2 where it raised a PrismError."""
    try:
        run(options)
    except PrismError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
