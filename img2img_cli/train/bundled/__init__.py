"""The training recipe of the bundled model. Start in `recipe`."""
