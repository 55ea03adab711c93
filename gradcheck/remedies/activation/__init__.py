"""Remedies of activations, in depth and on the output."""
