"""Adapters: each domain supplies a generator, an encoder and data to the shared drifting core."""
