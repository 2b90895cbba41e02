"""Keeps the arithmetic of `infra/planning/memory` true: vLLM's own answers beside ours, and transformers' defaults."""
