"""Body, head and pooling; the attention that carries out a plan; loading, saving, self-checks."""
