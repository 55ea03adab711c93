"""Watching a training loop that gradcheck did not write: what it computed, in which order, and how to compute it again."""
