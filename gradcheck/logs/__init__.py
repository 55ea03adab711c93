"""Finished runs of which only a log is left: reading what others wrote, and judging it. No torch is needed."""
