"""What TensorRT and TensorRT for RTX have in common, which is nearly everything."""
