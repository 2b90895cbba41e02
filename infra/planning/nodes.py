"""What one node offers to the Ray worker pod that takes it whole: the instance's allocatable minus daemon sets."""

from __future__ import annotations

from collections.abc import Sequence

from modelfleet.infra.catalog import Catalog, InstanceType
from modelfleet.infra.planning.plan import NodeShape
from modelfleet.infra.stack import NodeSize, Reserve
from modelfleet.serving.config.accelerators import CPU, resource_name

MIB = 1024**2

#: Share of an instance's memory that the hypervisor and kernel keep; Karpenter's VM_MEMORY_OVERHEAD_PERCENT.
VM_OVERHEAD = 0.075
#: Kubelet's eviction threshold for memory on EKS, MiB.
EVICTION_MIB = 100
#: /dev/shm of a worker pod: Ray's object store and NCCL; a quarter of the memory, at most this many MiB.
MAX_SHM_MIB = 16 * 1024
#: Ray's object store, a part of /dev/shm. It carries no tensors here (vLLM's workers share memory on their own).
OBJECT_STORE_MIB = 512
#: A vLLM image unpacks to some 30 GB, so the default 20 GiB ends in DiskPressure. A type with NVMe keeps images and
#: weights there (nodeadm's localStorage RAID0). A type without it keeps weights on the root volume too.
ROOT_GIB_WITH_NVME = 200
ROOT_GIB_WITHOUT_NVME = 500
#: Share of a disk that is left for pods, after kubelet's reserve (nodefs eviction at 10 %, 1 GiB) and the file system.
DISK_SHARE = 0.8
GB_PER_GIB = 1.073741824
#: What of a node's disk is not for weights, GB: the image unpacked (30), logs, and what compilers keep.
NOT_WEIGHTS_GB = 40


def allocatable_cpu_millis(vcpus: int) -> int:
    """Kubelet's allocatable CPU on EKS: 6 % of the first core is reserved, 1 % of the second, 0.5 % of the next
    two, 0.25 % of the rest (amazon-eks-ami, nodeadm internal/kubelet/config.go)."""
    tenths = 600 + 100 * (vcpus > 1) + 50 * min(max(vcpus - 2, 0), 2) + 25 * max(vcpus - 4, 0)
    return vcpus * 1000 - tenths // 10


def allocatable_memory_mib(memory_mib: int, max_pods: int) -> int:
    """Kubelet's allocatable memory in MiB, by Karpenter's safe lower bound (7.5 % VM overhead first)."""
    return int(memory_mib * (1 - VM_OVERHEAD)) - (11 * max_pods + 255) - EVICTION_MIB


def node_shape(
    types: Sequence[InstanceType], catalog: Catalog, *, made_here: bool, reserve: Reserve | None = None
) -> NodeShape:
    """What a node of any of `types` offers: the least of each resource, minus daemon sets.

    `made_here`: the stack makes the node, and so its disk. `reserve` is for daemon sets that are not the stack's.
    """
    cpu, memory = _not_for_workers(catalog, reserve, gpu=types[0].gpus > 0)
    offered = min(allocatable_memory_mib(one.memory_mib, one.max_pods) for one in types) - memory
    nvme_gb = min(one.nvme_gb for one in types)
    root_gib = ROOT_GIB_WITH_NVME if nvme_gb else ROOT_GIB_WITHOUT_NVME
    return NodeShape(
        cpu_millis=min(allocatable_cpu_millis(one.vcpus) for one in types) - cpu,
        memory_mib=offered,
        gpus=min(one.gpus for one in types),
        shm_mib=min(offered // 4, MAX_SHM_MIB),
        root_gib=root_gib if made_here else 0,
        disk_gb=(int(nvme_gb * DISK_SHARE) if nvme_gb else pods_disk_gb(root_gib)) if made_here else 0,
    )


def pods_disk_gb(root_gib: int) -> int:
    """What pods may request of a root volume, GB."""
    return int(int(root_gib * GB_PER_GIB) * DISK_SHARE)


def weights_disk_gb(node: NodeShape) -> int | None:
    """What all weights on a node may take together, GB; None where the stack does not make its disk."""
    return max(0, node.disk_gb - NOT_WEIGHTS_GB) if node.disk_gb else None


def sized_node(size: NodeSize, catalog: Catalog, reserve: Reserve | None = None) -> NodeShape:
    """A node of an existing cluster: the allocatable that the stack file gives, minus daemon sets."""
    cpu, memory = _not_for_workers(catalog, reserve, gpu=size.gpus > 0)
    offered = size.memory_gib * 1024 - memory
    return NodeShape(size.cpus * 1000 - cpu, offered, size.gpus, min(offered // 4, MAX_SHM_MIB))


def _not_for_workers(catalog: Catalog, reserve: Reserve | None, *, gpu: bool) -> tuple[int, int]:
    """Millicores and MiB of a node for daemon sets: the stack's own, and what the stack file reserves for others."""
    cpu, memory = catalog.daemon_requests(gpu=gpu)
    return (cpu + reserve.cpu_millis, memory + reserve.memory_mib) if reserve else (cpu, memory)


def ray_resources(accelerator: str, node: NodeShape) -> dict[str, float]:
    """The Ray resources of a worker on this node, as the worker group declares them (memory is Ray's own)."""
    offered = {"CPU": float(node.cpu_millis // 1000), resource_name(accelerator): 1.0}
    return offered if accelerator == CPU else {**offered, "GPU": float(node.gpus)}
