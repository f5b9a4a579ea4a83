"""Safe loading: what comes in, what is refused, and that nothing of it ever runs."""
