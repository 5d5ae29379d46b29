"""Hypothesis draws the same few examples on every run: a failure in CI is a failure at every desk."""

from hypothesis import settings

settings.register_profile("deterministic", max_examples=25, deadline=None, derandomize=True, database=None)
settings.load_profile("deterministic")
