"""A training as objects, and faithful copies of it."""
