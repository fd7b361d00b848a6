"""One runnable file for each claim in the README: `python -m benchmarks.NAME [--quick] [--json FILE]`."""
