"""Remedies of the batches."""
