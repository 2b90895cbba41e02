"""`pulumi-resource-kubernetes`, which the Pulumi engine runs; see `tools/standin/bin/kubernetes/`."""

from modelfleet.infra.provider import main
from tools.standin.kubernetes.provider import KubernetesServicer, KubernetesStandin

if __name__ == "__main__":
    main(KubernetesStandin(), servicer=KubernetesServicer)
