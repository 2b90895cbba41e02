"""Real nodes: kubelet, containerd, kube-proxy and enforced policies, in namespaces and cgroups of their own.

`machine` says what the machine lacks; `images` makes the images; `network` is the cluster's own network; `node` starts
one node; `inside` is the node's first process, which applies what `files` words from `settings`.
"""
