"""Tells webhooks what happens to jobs: whom it may reach, one request, and the loop that sends what is due."""
