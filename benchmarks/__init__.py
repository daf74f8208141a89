"""Benchmarks: every figure that the README quotes is measured here; `python -m benchmarks` runs them."""
