"""Remedies of the loss and of how it is taken."""
