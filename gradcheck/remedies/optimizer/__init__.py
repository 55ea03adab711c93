"""Remedies of the optimizer, its rate over time, and its weight decay."""
