"""Remedies with residual branches."""
