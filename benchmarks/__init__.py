"""Benchmarks: ``python -m benchmarks`` lists them. They are no tests: each prints a table of figures and ratios."""
