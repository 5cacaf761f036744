"""Learn from pairs of pictures, and make the models that ship inside. Only the training commands import this package.

Start in `pairs.recipe`, `diffusion.trainer`, `nets.recipe` or `bundled.recipe`.
"""
