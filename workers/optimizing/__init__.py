"""The closed loop of `optimize`, in parts: what is tried, what is proposed next, and what is chosen."""
