"""Where two runs of the same training part: `story.py` runs both programs, and compares what was recorded of them."""
