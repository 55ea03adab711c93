"""Finished runs that left only a log: reading what others wrote, and judging it. No torch is needed."""
