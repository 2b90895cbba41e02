"""`pulumi-resource-kubernetes`: run by the Pulumi engine, see `tools/standin/bin/kubernetes/`."""

from infra.provider import main
from tools.standin.kubernetes.provider import KubernetesServicer, KubernetesStandin

if __name__ == "__main__":
    main(KubernetesStandin(), servicer=KubernetesServicer)
