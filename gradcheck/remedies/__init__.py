"""Remedies: the closed vocabulary of treatments, applied to copies and written as source edits."""
