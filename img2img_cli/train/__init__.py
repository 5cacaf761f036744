"""The recipe of the bundled model. Nothing but its own command imports it."""
