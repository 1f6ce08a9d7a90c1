"""Numbers in few bits: the formats of released checkpoints, which tensor has which, and what rounding costs."""
