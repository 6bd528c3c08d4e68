"""Redis: charges and records in one atomic step, the key registry, and the journal for when Redis is away."""
