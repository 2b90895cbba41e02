"""Volumes in a cluster that has no provisioner: made by hand, as folders that every node sees."""

from __future__ import annotations

from pathlib import Path

from modelfleet.infra.kubernetes.preflight import DEFAULT_CLASS
from tools.kubernetes.cluster import MANAGER, Cluster

CLASS = "folders"


def folder_of(cluster: Cluster, name: str) -> Path:
    """Where a volume's files are, on this machine and on each node."""
    return cluster.folder / "volumes" / name


def give_volume(cluster: Cluster, name: str) -> None:
    """A volume for one claim of the default StorageClass.

    It is a local one, because of hostPath the kubelet changes no owner, as it does for `fsGroup` on a cloud's volumes.
    """
    folder = folder_of(cluster, name)
    folder.mkdir(parents=True)
    anywhere = {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "Exists"}]}
    made = [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": CLASS, "annotations": {DEFAULT_CLASS: "true"}},
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "storageClassName": CLASS,
                "capacity": {"storage": "100Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "local": {"path": str(folder)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [anywhere]}},
            },
        },
    ]
    for manifest in made:
        cluster.api.apply(manifest, manager=MANAGER, force=True)
