"""Everything that only a GPU can show: engines against PyTorch, speed, serving under load, memory that comes back."""
