"""The parts of benchmarks/serving.py: models, samples, processes, generators of load, figures and the report."""
