"""What is done to the app on purpose, and what it may not cost: `python -m benchmarks.faults`. Each module but
`running`, `people` and `raw` is one section.
"""
