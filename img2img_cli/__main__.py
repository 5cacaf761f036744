"""`python -m img2img_cli`."""

from img2img_cli.cli.app import main

main()
