"""Pure functions of a Measurement, shared by the rules and the measuring code. No torch."""
