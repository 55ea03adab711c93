"""Remedies of transformer blocks."""
