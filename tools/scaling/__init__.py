"""Scaling policies on seeded traces: a simulator, and a picture of what it shows."""
