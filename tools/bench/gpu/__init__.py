"""`make gpu-bench`: `vllm serve` beside our replica on a real NVIDIA card, in one table and within minutes."""
