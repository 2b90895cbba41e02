"""Bytes of a model on a GPU, from its `config.json`: caches, their pool, and weights. Pure arithmetic after vLLM 0.32.0."""
