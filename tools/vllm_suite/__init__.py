"""vLLM's own API tests, asked of `vllm serve` and of modelfleet (`make vllm-suite`)."""
