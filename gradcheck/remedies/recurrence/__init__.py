"""Remedies of recurrent layers."""
