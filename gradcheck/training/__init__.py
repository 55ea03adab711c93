"""Training a copy: single steps, the probe, paired comparison with intervals and metrics."""
