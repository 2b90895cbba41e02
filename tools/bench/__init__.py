"""Measures what modelfleet adds to vLLM, and where the time of `modelfleet up` goes."""
