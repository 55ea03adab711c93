"""Remedies of the user's training loop: edits of the source alone."""
