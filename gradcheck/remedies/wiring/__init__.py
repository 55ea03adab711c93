"""Remedies of what the training does not reach."""
