"""gradcheck inside other tools: pytest, trainers (callbacks), experiment trackers (sinks). Each module imports its own tool only."""
