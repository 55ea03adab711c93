"""`fix`: from findings to verified remedies and edits of the source. `story.py` first; of scripts `script.py`."""
