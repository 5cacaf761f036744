"""img2img: turn one picture into another with Stable Diffusion, from the shell."""

from img2img_cli.system import environment as environment  # first of all: it sets up libraries not yet imported

__version__ = "0.1.0"
PACKAGE = __path__[0]
