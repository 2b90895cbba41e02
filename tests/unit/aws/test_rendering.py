"""User data, kubeconfig, scaling tags and names, as the pure parts of the AWS half write them."""

from __future__ import annotations

import base64
import email
import json
from pathlib import Path
from typing import Any

from modelfleet.infra.aws.kubeconfig import kubeconfig
from modelfleet.infra.aws.launch_template import purchase_options
from modelfleet.infra.aws.scaling_tags import scaling_tags
from modelfleet.infra.aws.site import site_of
from modelfleet.infra.aws.user_data import node_config, user_data
from tests.unit.aws.builders import facts, planned

CPU = {"name": "cpu", "accelerator": "CPU", "maxNodes": 1, "instanceTypes": ["m7i.xlarge"]}


def test_user_data_is_mime_with_one_nodeadm_part() -> None:
    message = email.message_from_bytes(base64.b64decode(user_data(node_config(gpu=True))))
    (part,) = message.get_payload()
    assert part.get_content_type() == "application/node.eks.aws"
    config = json.loads(part.get_payload())
    assert (config["apiVersion"], config["kind"]) == ("node.eks.aws/v1alpha1", "NodeConfig")
    assert config["spec"]["instance"]["localStorage"]["strategy"] == "RAID0"
    assert config["spec"]["featureGates"] == {"FastImagePull": True}


def test_user_data_is_the_same_each_time() -> None:
    assert user_data(node_config(gpu=True)) == user_data(node_config(gpu=True)), "a difference rolls all nodes"


def test_a_kubeconfig_holds_no_credential() -> None:
    config = _kubeconfig(None)
    assert config["clusters"][0]["cluster"] == {"server": "https://e", "certificate-authority-data": "Q0E="}
    assert set(config["users"][0]["user"]) == {"exec"}
    assert config["current-context"] == "c"


def test_a_kubeconfig_uses_the_profile_of_the_run() -> None:
    assert _kubeconfig("prod")["users"][0]["user"]["exec"]["args"][-2:] == ["--profile", "prod"]
    assert "--profile" not in _kubeconfig(None)["users"][0]["user"]["exec"]["args"]


def _kubeconfig(profile: str | None) -> Any:
    text = kubeconfig(name="c", endpoint="https://e", certificate_authority="Q0E=", region="us-west-2", profile=profile)
    return json.loads(text)


def test_a_node_without_nvme_gets_a_root_volume_with_room_for_the_weights(tmp_path: Path) -> None:
    gpu, _ = planned(tmp_path / "a")
    cpu, _ = planned(tmp_path / "b", pools=[CPU])
    assert (gpu.pools[0].node.root_gib, cpu.pools[0].node.root_gib) == (200, 500)


def test_scaling_tags_of_a_pool_without_gpus_name_no_gpu(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, pools=[CPU])
    assert set(scaling_tags(plan.pools[0])) == {"disk"}
    assert scaling_tags(plan.pools[0])["disk"][1] == "428G", "four fifths of 500 GiB, in GB"


def test_on_demand_and_spot_leave_the_market_to_the_node_group(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path)
    assert purchase_options(plan.pools[0].rungs[0]) == {}


def test_our_tags_override_those_of_the_stack_file(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, tags={"team": "ml", "modelfleet.dev/stack": "forged"})
    site = site_of(plan, facts())
    assert site.tagged("x") == {
        "team": "ml",
        "modelfleet.dev/stack": "test",
        "modelfleet.dev/managed-by": "pulumi",
        "Name": "x",
    }
    assert site.cluster_arn == "arn:aws:eks:us-west-2:123456789012:cluster/modelfleet-test"
