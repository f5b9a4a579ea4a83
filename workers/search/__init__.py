"""How a search chooses what to try next, and what it makes of what was found."""
