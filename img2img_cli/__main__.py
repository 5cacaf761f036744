"""The command's entry point."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

_exit_codes: list[int] = []


def _leave() -> None:
    """End the process without taking every imported module apart, which takes a second once torch is among them."""
    if _exit_codes:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_codes[0])


def main() -> NoReturn:
    """Run the command and leave with its documented exit code."""
    atexit.register(_leave)  # before any import, as what is registered first is called last
    from img2img_cli.cli import app

    try:
        app.main()
    except SystemExit as error:
        assert isinstance(error.code, int)
        _exit_codes.append(error.code)
        raise


if __name__ == "__main__":
    main()
