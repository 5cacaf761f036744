"""img2img: turn one picture into another with Stable Diffusion, from the shell."""

__version__ = "0.1.0"
PACKAGE = __path__[0]
