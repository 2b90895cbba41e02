"""From what a foreign file says to a model file: decided here, worded in `writing.py`.

What the file does not say becomes a hole, which `modelfleet check` names; nothing is guessed. What a model file has no
place for becomes a note.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelfleet.infra.interchange.arguments import SECRETS
from modelfleet.infra.interchange.gpus import machine_of
from modelfleet.infra.interchange.workload import Note, Workload, readable, unknowns
from modelfleet.serving.config.accelerators import CPU, STEERING_FRACTION, resource_name
from modelfleet.serving.config.catalogs import front_end_arguments
from modelfleet.serving.config.document import KeyPath
from modelfleet.serving.config.engine_rules import FRONT_END, RESERVED, argument_faults
from modelfleet.serving.config.engine_schema import MODEL_ID
from modelfleet.serving.config.holes import HOLE
from modelfleet.serving.config.rules import SECRET
from modelfleet.serving.config.schema import AutoscalingConfig, DeploymentConfig, slug_of
from modelfleet.serving.config.serve_options import SCALING_KEYS

_SCHEMES = {"s3": "s3_mirror_config", "gs": "gcs_mirror_config", "az": "azure_mirror_config"}
_HUB = re.compile(rf"(?:pvc\+)?hf://(?:[\w.-]+/(?=[\w.-]+/[\w.-]+))?({MODEL_ID.pattern})(?:[:@]([\w./-]+))?$")
#: KV connectors that need no other program (vLLM 0.32, kv_connector/factory.py), so a replica can have them.
_OWN_CONNECTORS = frozenset({"OffloadingConnector", "SimpleCPUOffloadConnector"})
#: Variables that a file sets for vLLM and its libraries; the others are about the container.
_ENGINE_VARIABLES = re.compile(r"(VLLM|NCCL|TORCH|PYTORCH|FLASHINFER|OMP|CUDA_DEVICE_ORDER|SAFETENSORS|TRITON)_\w+$")
_CONTAINER_VARIABLES = re.compile(
    r"VLLM_(HOST_IP|PORT|CACHE_ROOT|CONFIG_ROOT|ADDITIONAL_ARGS|ARGS|USE_V1|TARGET_DEVICE|RPC_\w+|NO_USAGE_STATS|"
    r"API_KEY|LOGGING_CONFIG_PATH|USE_MODELSCOPE|API_SERVER_COUNT|NIXL_\w+|S3_\w+|WORKER_MULTIPROC_METHOD|ALLOW_RUNTIME_LORA_UPDATING)$|NCCL_SOCKET_IFNAME$|"
    r"NCCL_IB_\w+$|TRITON_CACHE_DIR$|TORCH_HOME$"
)
_STREAMED = frozenset({"runai_streamer", "runai_streamer_sharded"})


@dataclass(frozen=True)
class Draft:
    """A model file to be: its data, the comment for each hole, and what is not in it."""

    where: str
    data: dict[str, Any]
    holes: Mapping[KeyPath, str] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    #: The file's text as it stands, for a file that is a model file already.
    text: str | None = None

    @property
    def name(self) -> str:
        """Name of the file, without its ending."""
        model_id = self.data.get("engine_config", {}).get("model_id", HOLE)
        if model_id != HOLE:
            return slug_of(str(model_id))
        return re.sub(r"[^A-Za-z0-9]+", "-", self.where).strip("-").lower()[:60] or "model"


def draft_of(workload: Workload, accelerator: str | None = None) -> Draft:
    """The model file of a workload; `accelerator` is the user's word where the file has none."""
    return _Drafting(workload, accelerator).draft()


class _Drafting:
    def __init__(self, workload: Workload, accelerator: str | None) -> None:
        self.workload, self.accelerator = workload, accelerator
        self.left = dict(workload.arguments)
        self.notes = list(workload.notes)
        self.holes: dict[KeyPath, str] = {}
        self.engine: dict[str, Any] = {}
        self.kwargs: dict[str, Any] = {}

    def draft(self) -> Draft:
        self.weights()
        self.length()
        scaling = self.scaling()
        self.adapters()
        self.arguments()
        self.environment()
        deployment = self.deployment()
        if self.kwargs:
            self.engine["engine_kwargs"] = self.kwargs
        data = {"deployment_config": deployment, "engine_config": self.engine, "scaling_config": scaling}
        if self.workload.patch:
            data = merge_patch(data, self.workload.patch)
        data = {section: value for section, value in data.items() if value != {}}
        holes = {path: comment for path, comment in self.holes.items() if _value_at(data, path) == HOLE}
        return Draft(self.workload.where, data, holes, tuple(dict.fromkeys(self.notes)))

    def note(self, what: str, why: str) -> None:
        self.notes.append(Note(readable(what), why))

    def hole(self, path: KeyPath, comment: str) -> str:
        self.holes[path] = readable(comment)
        return HOLE

    def weights(self) -> None:
        """The model's public name, and where its weights come from."""
        named = self.left.pop("model", None)
        tagged = self.left.pop("model_tag", None)
        source = str(tagged or named or "")
        hub, revision = _hub_id(source)
        if not hub:
            hub = self.workload.downloads.get(source.rstrip("/"), "")
            if hub:
                self.note(f"weights in {source}", f"an earlier step downloads them: {hub}")
        names = self.left.pop("served_model_name", None) or []
        names = names if isinstance(names, list) else [names]
        self.name([str(name) for name in names], hub, source)
        self.source(hub, source)
        if revision := self.left.pop("revision", None) or revision:
            self.engine["revision"] = revision
        tokenizer = self.left.pop("tokenizer", None)
        if tokenizer is not None and tokenizer not in (source, hub):
            if _hub_id(str(tokenizer))[0]:
                self.engine["tokenizer_id"] = tokenizer
            else:
                self.note(f"--tokenizer {tokenizer}", "a folder of that container; name a Hub id in tokenizer_id")

    def name(self, names: list[str], hub: str, source: str) -> None:
        good = [name for name in names if MODEL_ID.fullmatch(name) and "--" not in name and len(name) <= 96]
        if good:
            self.engine["model_id"] = good[0]
        elif hub and not names and "served_model_name" not in self.workload.unsaid:
            self.engine["model_id"] = hub
        else:
            wanted = names[0] if names else source
            said = (
                f"clients called it {wanted}, which is no id here"
                if wanted and not list(unknowns(wanted))
                else "the file does not say"
            )
            self.engine["model_id"] = self.hole(("engine_config", "model_id"), f"the name for clients; {said}")
        for other in names:
            if other != self.engine["model_id"]:
                self.note(
                    f"--served-model-name {other}",
                    "a model file has one model_id; write another file for a second name",
                )

    def source(self, hub: str, source: str) -> None:
        scheme, sign, _ = source.partition("://")
        path: KeyPath = ("engine_config", "hf_model_id")
        if hub:
            if hub != self.engine["model_id"]:
                self.engine["hf_model_id"] = hub
        elif sign and scheme in _SCHEMES and not list(unknowns(source)):
            self.engine[_SCHEMES[scheme]] = {"bucket_uri": source.rstrip("/")}
            self.engine["hf_model_id"] = self.hole(
                path, "the Hub id of the same weights: the plan reads their size from its config.json"
            )
        elif source and not list(unknowns(source)):
            self.engine["hf_model_id"] = self.hole(
                path,
                f"the weights were in {source} of that machine; name their Hub id, or a bucket in s3_mirror_config",
            )
        else:
            lost = ", ".join(f"${{{name}}}" for name in unknowns(source))
            said = f"the file takes it from {lost}" if lost else "the file names no model"
            self.engine["hf_model_id"] = self.hole(path, f"the Hub id of the weights; {said}")

    def length(self) -> None:
        length = self.left.pop("max_model_len", None)
        if isinstance(length, int) and length > 0:
            self.engine["max_total_tokens"] = length
        elif "max_model_len" in self.workload.unsaid:
            said = "prompt and answer together; the file takes it from outside"
            self.engine["max_total_tokens"] = self.hole(("engine_config", "max_total_tokens"), said)

    def scaling(self) -> dict[str, Any]:
        workers = self.left.pop("tensor_parallel_size", 1)
        path: KeyPath = ("scaling_config", "num_workers")
        if "tensor_parallel_size" in self.workload.unsaid:
            workers = self.hole(path, "GPUs of one replica; the file takes it from outside")
        machine = machine_of(self.workload.hardware, self.workload.image, self.workload.gpus)
        accelerator = self.accelerator or machine.accelerator
        stages = self.left.get("pipeline_parallel_size", 1)
        scaling: dict[str, Any] = {"num_workers": workers}
        if isinstance(workers, int) and isinstance(stages, int):
            scaling["num_workers"] = workers * stages
            if stages > 1:
                self.note(
                    f"--pipeline-parallel-size {stages}",
                    f"here each stage is on a node of its own, {stages} in all; for one node leave it out, and all of "
                    "num_workers are tensor parallel",
                )
        if accelerator == CPU:
            scaling["num_gpus_per_worker"] = 0
        if stages == 1 and (workers != 1 or accelerator != CPU):
            scaling["placement_strategy"] = "STRICT_PACK"
        if accelerator:
            scaling["resources_per_worker"] = {resource_name(accelerator): STEERING_FRACTION}
        else:
            comment = f"the GPU, as in {{accelerator_type:L4: 0.001}}; {machine.found or 'the file does not say'}"
            scaling["resources_per_worker"] = self.hole(("scaling_config", "resources_per_worker"), comment)
        self.gpus(workers)
        self.data_ranks(scaling, stages)
        return scaling

    def data_ranks(self, scaling: dict[str, Any], stages: Any) -> None:
        """A data parallel rank is one worker here, all on one node; others are what replicas are."""
        ranks, here = self.left.get("data_parallel_size", 1), self.left.get("data_parallel_size_local")
        if isinstance(ranks, int) and isinstance(here, int) and 1 <= here < ranks:
            self.note(
                f"--data-parallel-size {ranks}",
                f"a replica's ranks are on one node, as {here} of these are; for the others raise "
                "deployment_config.num_replicas or max_replicas",
            )
            self.left["data_parallel_size"] = ranks = here
        if ranks == 1:
            self.left.pop("data_parallel_size", None)
        if not isinstance(ranks, int) or ranks == 1:
            return
        if scaling["num_workers"] == 1 and stages == 1:
            scaling["num_workers"] = ranks
            return
        del self.left["data_parallel_size"]
        self.note(
            f"--data-parallel-size {ranks}",
            "a rank is one GPU here; for ranks of several raise deployment_config.num_replicas or max_replicas",
        )

    def gpus(self, workers: Any) -> None:
        gpus, sizes = (
            self.workload.gpus,
            (workers, self.left.get("pipeline_parallel_size", 1), self.left.get("data_parallel_size", 1)),
        )
        if gpus is None or not all(isinstance(size, int) for size in sizes):
            return
        used = sizes[0] * sizes[1] * sizes[2]
        if gpus > used:
            self.note(
                f"{gpus} GPUs", f"vLLM used {used} of them: that is what tensor, pipeline and data parallel sizes say"
            )

    def adapters(self) -> None:
        found = []
        for adapter in self.left.pop("lora_modules", None) or []:
            name, path = str(adapter.get("name", "")), str(adapter.get("path", ""))
            hub, _ = _hub_id(path)
            if hub or path.partition("://")[0] in _SCHEMES:
                found.append({"name": name, "source": hub or path})
            else:
                self.note(
                    f"--lora-modules {name}={path}",
                    "a folder of that container; name a Hub id or a bucket in engine_config.lora",
                )
        if found:
            self.engine["lora"] = found
            self.left.pop("enable_lora", None)

    def arguments(self) -> None:
        """What is left of vLLM's arguments."""
        if self.left.get("load_format") in _STREAMED:
            self.note(f"--load-format {self.left.pop('load_format')}", "weights are streamed from the mirror as it is")
            self.left.pop("model_loader_extra_config", None)
        listening: list[str] = []
        for name, value in self.left.items():
            option = f"--{name.replace('_', '-')}"
            if (why := self.refusal(name, value)) is not None:
                self.note(option if name in SECRETS else f"{option} {_short(value)}", why)
            elif name in front_end_arguments() and name not in FRONT_END:
                listening.append(option)
            elif not (name == "generation_config" and value == "auto"):  # vLLM's default, and ours
                self.kwargs[name] = value
        if listening:
            self.note(", ".join(listening), "the gateway in front listens, logs and ends TLS")

    def refusal(self, name: str, value: Any) -> str | None:
        """Why a model file does not take an argument, or None."""
        if name in RESERVED:
            return RESERVED[name]
        if name == "distributed_executor_backend":
            return "a replica's own layout decides it"
        if name in front_end_arguments() and name not in FRONT_END:
            return None
        if name == "kv_transfer_config" and str((value or {}).get("kv_connector")) not in _OWN_CONNECTORS:
            return "its connector needs packages or partners that a replica does not have"
        if name in ("chat_template", "tool_parser_plugin") and "{" not in str(value):
            return "a file of that container; a chat template goes into engine_kwargs.chat_template as text"
        if name == "download_dir":
            return "weights lie in the node's cache"
        return next((message for _, message in argument_faults(name, value)), None)

    def environment(self) -> None:
        kept: dict[str, str] = {}
        left: list[str] = []
        for name, value in sorted(self.workload.environment.items()):
            if SECRET.search(name):
                token = (
                    "run `pulumi config set --secret modelfleet:huggingFaceToken`"
                    if name.startswith(("HF_", "HUGGING"))
                    else "it is a secret and belongs in none of the files"
                )
                self.note(name, token)
            elif not _ENGINE_VARIABLES.match(name) or _CONTAINER_VARIABLES.match(name):
                left.append(name)
            elif lost := list(unknowns(value)):
                self.note(name, f"its value is not in the file: {', '.join(lost)}")
            else:
                kept[name] = value
        if kept:
            self.engine["runtime_env"] = {"env_vars": kept}
        if left:
            self.note(", ".join(left), "about that container, not the engine")

    def deployment(self) -> dict[str, Any]:
        known = DeploymentConfig.model_fields
        found = {key: value for key, value in self.workload.deployment.items() if key in known}
        for key in self.workload.deployment.keys() - known.keys():
            self.note(f"deployment_config.{key}", "a model file does not take this option of Ray Serve")
        if self.workload.autoscaling:
            asked = self.workload.autoscaling
            taken = AutoscalingConfig.model_fields.keys() - SCALING_KEYS  # a `policy` of Serve's is another thing
            scaling = {key: value for key, value in asked.items() if key in taken}
            for key in asked.keys() - scaling.keys():
                self.note(f"autoscaling_config.{key}", "a model file does not take this option of Ray Serve")
            if scaling.get("max_replicas", 1) > scaling.get("min_replicas", 1):
                path: KeyPath = ("deployment_config", "autoscaling_config", "target_ongoing_requests")
                comment = "requests per replica to aim for; about 40 % of max_ongoing_requests, 100, is usual"
                scaling.setdefault("target_ongoing_requests", self.hole(path, comment))
            found["autoscaling_config"] = scaling
        elif self.workload.replicas is not None and "autoscaling_config" not in found:
            if self.workload.replicas > 0:
                found.setdefault("num_replicas", self.workload.replicas)
            else:
                self.note("0 replicas", "a model file has one at least; `enabled: false` leaves a model out")
        return found


def _hub_id(source: str) -> tuple[str, str | None]:
    """A Hub id and revision, of `org/name` or `hf://org/name:revision`."""
    if match := _HUB.fullmatch(source):
        return match[1], match[3]
    plain = MODEL_ID.fullmatch(source) is not None and "/" in source
    # `gpt2` is a Hub id and `llama` a folder's name: only one with an owner is surely the first.
    return (source, None) if plain else ("", None)


def _short(value: Any) -> str:
    text = readable(str(value))
    return text if len(text) <= 60 else f"{text[:57]}…"


def _value_at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def merge_patch(data: Any, patch: Any) -> Any:
    """RFC 7396: mappings are merged, null removes, anything else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(data) if isinstance(data, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def patch_between(before: Any, after: Any) -> Any:
    """The merge patch that makes `after` of `before`."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    return {
        **dict.fromkeys(before.keys() - after.keys()),
        **{
            key: patch_between(before.get(key), value)
            for key, value in after.items()
            if key not in before or before[key] != value
        },
    }


def holes_of(draft: Draft) -> Iterator[tuple[str, str]]:
    """Each hole's key and comment."""
    for path, comment in draft.holes.items():
        yield ".".join(map(str, path)), comment
