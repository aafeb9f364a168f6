"""Paired comparisons against what people use today, at equal results: `make bench`, or `python -m benchmarks`."""
