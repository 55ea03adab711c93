"""`fix`: from findings to verified remedies and edits of the source. Read `story.py` first; for scripts, `script.py`."""
