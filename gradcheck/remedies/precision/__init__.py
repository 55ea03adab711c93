"""Remedies of regions in half precision."""
