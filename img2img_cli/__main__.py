"""The command: handed to a warm server's door where there is one, else run here."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes longer to load than all the rest
    from typing import NoReturn

WARM = ("edit", "colorize", "upscale", "restore")  # commands that a server makes faster


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    if sys.argv[1:2] and sys.argv[1] in WARM and "--no-server" not in sys.argv:
        from img2img_cli.visitor import ask_door

        code = ask_door(sys.argv[1:])
        if code is not None:
            sys.exit(code)
    from img2img_cli.cli.app import main

    main()


if __name__ == "__main__":
    main()
