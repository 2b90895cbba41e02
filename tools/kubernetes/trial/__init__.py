"""`make up STACK=cluster`: the Kubernetes half on one machine, in a cluster that is there or in one of its own."""
