"""Engines in a process of their own, HTTP in several others: frames over a unix socket. See docs/adr/0010."""
