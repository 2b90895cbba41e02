"""Scaling policies on seeded traces, in a simulator."""
