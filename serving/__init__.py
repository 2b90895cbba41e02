"""The package that runs in the cluster: from a model file to vLLM behind Ray Serve."""
