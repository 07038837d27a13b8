"""Real architectures, each at a realistic size and at a tiny one: what tracing is tried on."""
