"""gradcheck inside of other tools: pytest, trainers (callbacks), trackers of experiments (sinks). Each module imports its own tool only."""
