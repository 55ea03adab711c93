"""Remedies with and of normalization layers."""
