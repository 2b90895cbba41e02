"""Bytes of a model on a GPU, from its `config.json`: caches, their pool, and weights, as vLLM 0.32.0 makes them."""
