"""Recipes of the bundled networks that are functions of a picture: `restore` and `upscale`. Start in `recipe`."""
