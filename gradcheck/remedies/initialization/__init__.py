"""Remedies of initial weights."""
