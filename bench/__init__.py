"""Benchmarks and the demo: `python -m bench`, `python -m bench.demo`."""
