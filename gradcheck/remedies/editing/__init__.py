"""Remedies as edits of the user's source: exact spans, re-parsed, shown as a diff, written atomically. `plan.py` is the story."""
