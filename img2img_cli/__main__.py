"""The command's entry point."""

from __future__ import annotations

from img2img_cli.cli.app import main

if __name__ == "__main__":
    main()
