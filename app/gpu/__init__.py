"""NVIDIA GPUs: the driver, and the inference half of TensorRT. This file imports nothing."""
