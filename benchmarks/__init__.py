"""Figures of this toolkit and of the released peer, taken side by side on the same jobs.

``scripts/benchmark.sh`` sets both up and runs ``python -m benchmarks``.
"""
