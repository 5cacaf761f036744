"""Models kept warm: their queue, their pool, and the ways in."""
