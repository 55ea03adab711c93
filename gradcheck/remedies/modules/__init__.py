"""Changing modules of a treated workload: exchanging them, editing their code, hooks at every step."""
