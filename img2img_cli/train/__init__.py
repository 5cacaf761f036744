"""Train the bundled model. Only the training command imports this package."""
