"""The recipe of the bundled model. Start in `recipe`."""
