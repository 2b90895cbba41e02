"""The package that runs in the cluster: model file to engine arguments, weights and chat template, vLLM behind Ray Serve."""
