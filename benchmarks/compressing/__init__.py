"""Parts of benchmarks/compression.py: the tasks, the rivals, and the race that they run together."""
