"""What people have, in the shapes of public files, becomes model files; what they do not say becomes holes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.infra.interchange.draft import Draft
from modelfleet.infra.interchange.reading import read_drafts
from modelfleet.infra.interchange.writing import text_of
from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.errors import InputErrors, errors_in
from modelfleet.serving.config.holes import HOLE
from modelfleet.serving.config.load import model_of

SERVE = "vllm serve Qwen/Qwen3-8B --max-model-len 8k"
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: qwen}
spec:
  replicas: 3
  template:
    spec:
      nodeSelector: {SELECTOR}
      initContainers:
      - name: fetch
        image: python:3.12
        command: [sh, -c, "hf download Qwen/Qwen3-8B --local-dir /models/qwen"]
      containers:
      - name: vllm
        image: vllm/vllm-openai:v0.10.0
        COMMAND
        env:
        - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hub, key: token}}}
        - {name: LENGTH, value: "4096"}
        - {name: NCCL_DEBUG, value: INFO}
        resources: {limits: {nvidia.com/gpu: "2"}}
"""


def only(text: str, name: str = "given", **options: Any) -> Draft:
    (draft,) = read_drafts(text, name, **options)
    return draft


def engine(text: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = only(text, **options).data["engine_config"]
    return found


def notes(draft: Draft) -> str:
    return "\n".join(f"{note.what}: {note.why}" for note in draft.notes)


def deployment(command: str, selector: str = "cloud.google.com/gke-accelerator: nvidia-l4") -> str:
    return DEPLOYMENT.replace("COMMAND", command).replace("SELECTOR", selector)


@pytest.mark.parametrize(
    "command",
    [
        SERVE,
        "python3 -m vllm.entrypoints.openai.api_server --model Qwen/Qwen3-8B --max_model_len=8000",
        "nohup env CUDA_VISIBLE_DEVICES=0 vllm serve --max-model-len=8k --model=Qwen/Qwen3-8B > log 2>&1 &",
        "docker run --gpus all -e HF_TOKEN=$HF_TOKEN -v ~/.cache:/root -p 8000:8000 --ipc=host vllm/vllm-openai:latest"
        " --model Qwen/Qwen3-8B --max-model-len 8000",
        "docker run --rm --entrypoint vllm my/image serve Qwen/Qwen3-8B --max-model-len 8000",
        'sh -c "vllm serve Qwen/Qwen3-8B \\\n  --max-model-len 8000"',
        "ssh gpu-1 'vllm serve Qwen/Qwen3-8B --max-model-len 8000'",
        "MODEL=Qwen/Qwen3-8B\nLEN=${LEN:-8000}\nARGS=(--max-model-len $LEN)\nvllm serve $MODEL ${ARGS[@]}",
        "MODEL=Qwen/Qwen3-8B\nvllm serve ${MODEL} --max-model-len 8000 ${API_KEY:+--api-key $API_KEY}",
        "cat > run.yaml <<EOF\napiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: vllm/vllm-openai\n"
        "    args: [--model, Qwen/Qwen3-8B, --max-model-len, '8000']\nEOF\nkubectl apply -f run.yaml",
        "FROM vllm/vllm-openai:v0.9\nENV LEN=8000\nENTRYPOINT vllm serve Qwen/Qwen3-8B \\\n  --max-model-len $LEN",
        'FROM vllm/vllm-openai\nCMD ["--model", "Qwen/Qwen3-8B", "--max-model-len", "8000"]',
    ],
)
def test_every_way_to_start_the_server_is_the_same_model(command: str) -> None:
    draft = only(command)
    assert draft.data["engine_config"] == {
        "model_id": "Qwen/Qwen3-8B",
        "max_total_tokens": 8000,
    }
    assert list(draft.holes) == [("scaling_config", "resources_per_worker")]


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("--max-num-batched-tokens 8K", "max_num_batched_tokens", 8192),
        ("--gpu-memory-utilization=.9", "gpu_memory_utilization", 0.9),
        ("--no-enable-prefix-caching", "enable_prefix_caching", False),
        ("--enable-chunked-prefill=false", "enable_chunked_prefill", False),
        ("-q awq", "quantization", "awq"),
        ("--limit-mm-per-prompt image=4,video=1", "limit_mm_per_prompt", {"image": 4, "video": 1}),
        ("""--limit-mm-per-prompt '{"image": 4}'""", "limit_mm_per_prompt", {"image": 4}),
        ("--speculative-config.method ngram --speculative-config.num_speculative_tokens 4", "speculative_config",
         {"method": "ngram", "num_speculative_tokens": 4}),
        ("--cudagraph-capture-sizes 1 2 4", "cudagraph_capture_sizes", [1, 2, 4]),
        ("--max-num-batched-token 4096", "max_num_batched_tokens", 4096),
        ("-O3", "optimization_level", 3),
        ("--max-lora-rank 64", "max_lora_rank", 64),
    ],
)  # fmt: skip
def test_options_have_the_values_that_vllm_reads(option: str, name: str, value: object) -> None:
    assert engine(f"{SERVE} {option}")["engine_kwargs"] == {name: value}


def test_how_vllm_ran_its_workers_is_not_taken_over() -> None:
    """`ray` would bring back a bundle per worker, which the command's author did not ask for."""
    kwargs = engine(f"{SERVE} --distributed-executor-backend ray").get("engine_kwargs", {})
    assert "distributed_executor_backend" not in kwargs


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--swap-space 16", "--swap-space 16: left vLLM after 0.12.0"),
        ("--disable-log-requests --max-model-len 9k", "--disable-log-requests: left vLLM"),
        ("--host 0.0.0.0 --port 80", "--host, --port: the gateway in front listens"),
        ("--nnodes 2", "--nnodes 2: vLLM's nodes find each other"),
        ("--served-model-name a b", "--served-model-name b: a model file has one model_id"),
        ("--chat-template /app/chat.jinja", "--chat-template /app/chat.jinja: a file of that container"),
        ('--kv-transfer-config \'{"kv_connector": "NixlConnector"}\'', "needs packages or partners"),
        ("--lora-modules sql=/adapters/sql", "--lora-modules sql=/adapters/sql: a folder of that container"),
        ("--max-num-seqs $SEQS", "--max-num-seqs ${SEQS}: its value is not in the file: SEQS"),
        ("--max-num-seq-s 3", "did you mean max_num_seqs?"),
        ("--quantization squeezellm", "squeezellm"),
    ],
)
def test_what_a_model_file_has_no_place_for_is_said(option: str, said: str) -> None:
    draft = only(f"{SERVE} {option}")
    assert said in notes(draft)
    assert said.split(":", maxsplit=1)[0] in " ".join(text_of(draft).split("#"))


def test_secrets_are_never_written() -> None:
    for text in (
        f"export HF_TOKEN=hf_sesame VLLM_API_KEY=sesame2\n{SERVE} --api-key sesame3",
        f"{SERVE} --api-key sesame-$MORE",
        f"docker run -e HF_TOKEN=hf_sesame -e AWS_SECRET_ACCESS_KEY=sesame4 vllm/vllm-openai {SERVE[5:]} --hf-token sesame",
        "services:\n  llm:\n    image: vllm/vllm-openai\n    environment: [HF_TOKEN=hf_sesame, VLLM_API_KEY=sesame]\n"
        "    command: --model a/b --api-key=sesame",
    ):
        written = text_of(only(text))
        assert "sesame" not in written
        assert "modelfleet:huggingFaceToken" in written or "modelfleet:apiKeys" in written


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("vllm serve /models/llama --served-model-name llama", "engine_config.hf_model_id", "/models/llama"),
        ("vllm serve /models/llama", "engine_config.model_id", "/models/llama"),
        ("vllm serve $MODEL", "engine_config.hf_model_id", "${MODEL}"),
        ("vllm serve a/b --served-model-name llama:8b", "engine_config.model_id", "llama:8b"),
        ("vllm serve a/b --max-model-len $LEN", "engine_config.max_total_tokens", "from outside"),
        ("vllm serve a/b -tp $GPUS", "scaling_config.num_workers", "from outside"),
        ("vllm serve s3://bucket/llama --served-model-name llama", "engine_config.hf_model_id", "config.json"),
        ("if test $BIG; then N=a/b; fi\nvllm serve $N", "engine_config.hf_model_id", "${N}"),
    ],
)
def test_what_the_file_does_not_say_is_a_hole_that_check_names_with_its_line(text: str, key: str, said: str) -> None:
    draft = only(text)
    written = text_of(draft)
    (line,) = [line for line in written.splitlines() if line.strip().startswith(f"{key.split('.')[1]}: {HOLE}")]
    assert said in line.partition("#")[2]
    _, findings = model_of(parse_document(written.encode(), "m.yaml"))
    assert sorted(one.path for one in errors_in(findings)) == sorted(".".join(map(str, path)) for path in draft.holes)
    found = next(finding for finding in findings if finding.path == key)
    assert written.splitlines()[found.line - 1] == line


@pytest.mark.parametrize(
    "command",
    [
        'args: ["--model", "/models/qwen", "--max-model-len", "$(LENGTH)", "-tp=2"]',
        "args: [--model=/models/qwen --max-model-len=4096 -tp 2]",
        'command: [/bin/bash, -c]\n        args: ["exec vllm serve /models/qwen --max-model-len $LENGTH -tp 2"]',
        "command: [vllm, serve, Qwen/Qwen3-8B, --max-model-len, 4096, -tp, 2]",
        'command: ["sh", "-c", "--"]\n        args:\n        - |\n          ulimit -n 9999\n'
        "          python -m vllm.entrypoints.openai.api_server --model /models/qwen \\\n"
        "            --tensor-parallel-size 2 --max-model-len ${LENGTH}",
    ],
)
def test_a_deployment_is_its_container_its_selector_and_its_replicas(command: str) -> None:
    draft = only(deployment(command))
    assert draft.holes == {}
    data = draft.data
    assert data["deployment_config"] == {"num_replicas": 3}
    assert data["engine_config"]["model_id"] == "Qwen/Qwen3-8B"
    assert data["engine_config"]["max_total_tokens"] == 4096
    assert data["engine_config"]["runtime_env"] == {"env_vars": {"NCCL_DEBUG": "INFO"}}
    assert data["scaling_config"] == {
        "num_workers": 2,
        "placement_strategy": "STRICT_PACK",
        "resources_per_worker": {"accelerator_type:L4": 0.001},
    }


@pytest.mark.parametrize(
    ("selector", "accelerator", "said"),
    [
        ("node.kubernetes.io/instance-type: g5.2xlarge", "A10G", ""),
        ("nvidia.com/gpu.product: NVIDIA-A100-SXM4-80GB", "A100-80G", ""),
        ("cloud.google.com/gke-accelerator: nvidia-tesla-t4", "T4", ""),
        ("k8s.amazonaws.com/accelerator: nvidia-a100", "", "A100-40G or A100-80G"),
        ("cloud.google.com/gke-accelerator: nvidia-b200", "B200", ""),
        ("cloud.google.com/gke-accelerator: nvidia-gb200", "", "GB200"),
        ("zone: eu-1", "", "the file does not say"),
        ("amd.com/gpu.product: MI300X", "", "AMD"),
    ],
)
def test_the_accelerator_is_read_from_the_selector_or_is_a_hole(selector: str, accelerator: str, said: str) -> None:
    draft = only(deployment("args: [--model, a/b, --max-model-len, '4096', -tp, '2']", selector))
    resources = draft.data["scaling_config"]["resources_per_worker"]
    assert resources == ({f"accelerator_type:{accelerator}": 0.001} if accelerator else HOLE)
    assert said in draft.holes.get(("scaling_config", "resources_per_worker"), "")


def test_the_users_word_fills_the_accelerators_hole() -> None:
    assert only(SERVE, accelerator="T4").data["scaling_config"]["resources_per_worker"] == {
        "accelerator_type:T4": 0.001
    }


def test_a_cpu_image_has_no_gpu() -> None:
    draft = only(
        "docker run -p 8000:8000 public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v0.9 --model a/b --max-model-len 1024"
    )
    assert draft.data["scaling_config"]["num_gpus_per_worker"] == 0


def test_an_autoscaler_of_the_file_gives_bounds_and_leaves_the_target_open() -> None:
    scaler = (
        "---\napiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: h}\n"
        "spec: {minReplicas: 2, maxReplicas: 6, scaleTargetRef: {kind: Deployment, name: qwen}}\n"
    )
    draft = only(deployment("args: [--model, a/b]") + scaler)
    scaling = draft.data["deployment_config"]["autoscaling_config"]
    assert scaling == {"min_replicas": 2, "max_replicas": 6, "target_ongoing_requests": HOLE}


def test_a_group_of_nodes_is_said_and_its_gpus_are_not_the_replicas() -> None:
    draft = only(
        "apiVersion: leaderworkerset.x-k8s.io/v1\nkind: LeaderWorkerSet\nmetadata: {name: big}\nspec:\n  replicas: 1\n"
        "  leaderWorkerTemplate:\n    size: 2\n    leaderTemplate:\n      spec:\n        containers:\n"
        "        - {image: vllm/vllm-openai, command: [sh, -c, 'vllm serve a/b -tp 8 --pipeline_parallel_size 2'],\n"
        "           resources: {limits: {nvidia.com/gpu: '8'}}}\n"
        "    workerTemplate:\n      spec:\n        containers:\n        - {image: vllm/vllm-openai, command: [sh, -c, ray start]}\n"
    )
    assert (
        draft.data["scaling_config"]["num_workers"] == 16 and "placement_strategy" not in draft.data["scaling_config"]
    )
    assert draft.data["engine_config"]["engine_kwargs"]["pipeline_parallel_size"] == 2
    assert "2 nodes for one replica" in notes(draft)
    assert "here each stage is on a node of its own, 2 in all" in notes(draft)


def test_an_inference_service_is_merged_with_its_runtime() -> None:
    draft = only(
        "apiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\nmetadata: {name: vllm}\nspec:\n  containers:\n"
        "  - name: kserve-container\n    image: vllm/vllm-openai:v0.9\n    command: [python, -m, vllm.entrypoints.openai.api_server]\n"
        "    args: [--port=8080, --model=/mnt/models, '--served-model-name={{.Name}}']\n"
        "---\napiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: llama}\nspec:\n  predictor:\n"
        "    minReplicas: 1\n    maxReplicas: 3\n    scaleMetric: concurrency\n    scaleTarget: 12\n"
        "    model:\n      modelFormat: {name: vLLM}\n      runtime: vllm\n      storageUri: hf://meta-llama/Llama-3.1-8B:abc123\n"
        "      args: [--max-model-len=4096]\n      resources: {limits: {nvidia.com/gpu: '1'}}\n"
    )
    assert draft.data["engine_config"] | {"engine_kwargs": {}} == {
        "model_id": "llama",
        "hf_model_id": "meta-llama/Llama-3.1-8B",
        "revision": "abc123",
        "max_total_tokens": 4096,
        "engine_kwargs": {},
    }
    assert draft.data["deployment_config"]["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_ongoing_requests": 12,
    }


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("s3://b/llama", "s3_mirror_config"),
        ("gs://b/llama", "gcs_mirror_config"),
        ("pvc://claim/llama", ""),
        ("oci://r/llama", ""),
    ],
)
def test_storage_of_a_service_is_a_bucket_or_a_hole(uri: str, key: str) -> None:
    text = (
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: llama}\nspec:\n  predictor:\n"
        f"    model:\n      modelFormat: {{name: huggingface}}\n      storageUri: {uri}\n      args: [--model_name=llama]\n"
    )
    found = engine(text)
    assert found["hf_model_id"] == HOLE
    assert (found.get(key) or {}).get("bucket_uri") == (uri if key else None)


def test_an_llm_inference_service_has_its_parallelism_as_fields() -> None:
    draft = only(
        "apiVersion: serving.kserve.io/v1alpha1\nkind: LLMInferenceService\nmetadata: {name: q}\nspec:\n"
        "  model: {uri: 'hf://Qwen/Qwen3-8B', name: qwen, lora: {adapters: [{name: sql, uri: 'hf://team/sql'}]}}\n"
        "  replicas: 2\n  parallelism: {tensor: 4, data: 2, expert: true}\n  prefill: {replicas: 1}\n  router: {scheduler: {}}\n"
        "  template:\n    containers:\n    - name: main\n      env: [{name: VLLM_ADDITIONAL_ARGS, value: '--max-model-len 4096'}]\n"
    )
    assert draft.data["scaling_config"]["num_workers"] == 4
    assert draft.data["engine_config"]["lora"] == [{"name": "sql", "source": "team/sql"}]
    assert draft.data["engine_config"]["engine_kwargs"]["enable_expert_parallel"] is True
    assert draft.data["engine_config"]["max_total_tokens"] == 4096
    assert "spec.prefill" in notes(draft) and "--data-parallel-size 2" in notes(draft)


@pytest.mark.parametrize(
    ("sizes", "workers", "noted"),
    [
        ("data: 4", 4, False),
        ("data: 16, dataLocal: 8", 8, True),
        ("data: 2, dataLocal: 1", 1, True),
        ("data: 1", 1, False),
    ],
)
def test_data_parallel_ranks_of_one_gpu_are_workers_and_those_on_other_nodes_replicas(
    sizes: str, workers: int, noted: bool
) -> None:
    draft = only(
        "apiVersion: serving.kserve.io/v1alpha1\nkind: LLMInferenceService\nmetadata: {name: q}\nspec:\n"
        f"  model: {{uri: 'hf://Qwen/Qwen3-30B-A3B', name: qwen}}\n  parallelism: {{{sizes}, expert: true}}\n"
        "  template: {containers: [{name: main}]}\n"
    )
    assert draft.data["scaling_config"]["num_workers"] == workers
    kept = draft.data["engine_config"]["engine_kwargs"].get("data_parallel_size", 1)
    assert kept == workers and ("a replica's ranks are on one node" in notes(draft)) == noted


def test_the_production_stacks_values_are_read_with_the_charts_own_default() -> None:
    first, second = read_drafts(
        "servingEngineSpec:\n  modelSpec:\n"
        "  - {name: a, repository: vllm/vllm-openai, tag: v1, modelURL: org/a, replicaCount: 2, requestGPU: 1,\n"
        "     requestGPUType: nvidia.com/gpu, hf_token: hf_sesame,\n"
        "     vllmConfig: {maxModelLen: 4096, enablePrefixCaching: true, tensorParallelSize: 2, extraArgs: [--dtype, half]}}\n"
        "  - {name: b, repository: lmcache/vllm-openai, tag: v1, modelURL: org/b, requestGPU: 0.5, lmcacheConfig: {enabled: true}}\n",
        "values.yaml",
    )
    assert first.data["engine_config"]["engine_kwargs"] == {
        "enable_prefix_caching": True, "dtype": "half",
    }  # fmt: skip
    assert first.data["deployment_config"] == {"num_replicas": 2}
    assert second.data["engine_config"]["engine_kwargs"]["enable_prefix_caching"] is False
    assert "lmcacheConfig" in notes(second) and "requestGPU 0.5" in notes(second)
    assert "sesame" not in text_of(first)


RAY = """
applications:
- name: llms
  import_path: ray.serve.llm:build_openai_app
  args:
    llm_configs:
    - model_loading_config: {model_id: qwen, model_source: Qwen/Qwen3-8B}
      accelerator_type: L4
      engine_kwargs: {max_model_len: 4096, tensor_parallel_size: 2}
      deployment_config: {autoscaling_config: {min_replicas: 1, max_replicas: 4}, max_ongoing_requests: 64}
      placement_group_config: {bundles: [{GPU: 1}, {GPU: 1}, {GPU: 1}]}
      lora_config: {dynamic_lora_loading_path: s3://b/adapters}
      runtime_env: {env_vars: {HF_TOKEN: sesame, VLLM_LOGGING_LEVEL: DEBUG}}
"""
PYTHON = """
from ray.serve.llm import LLMConfig, build_openai_app
NAME = "Qwen/Qwen3-8B"
config = LLMConfig(
    model_loading_config=dict(model_id="qwen", model_source=NAME),
    accelerator_type="L4",
    engine_kwargs={"max_model_len": 4096, "tensor_parallel_size": 2},
    deployment_config=dict(autoscaling_config=dict(min_replicas=1, max_replicas=4), max_ongoing_requests=64),
    placement_group_config={"bundles": [{"GPU": 1}, {"GPU": 1}, {"GPU": 1}]},
    lora_config=dict(dynamic_lora_loading_path="s3://b/adapters"),
    runtime_env=dict(env_vars={"HF_TOKEN": os.environ["HF_TOKEN"], "VLLM_LOGGING_LEVEL": "DEBUG"}),
)
app = build_openai_app({"llm_configs": [config]})
"""


@pytest.mark.parametrize(
    "text",
    [
        RAY,
        "apiVersion: ray.io/v1\nkind: RayService\nmetadata: {name: r}\nspec:\n  serveConfigV2: |\n"
        + "".join(f"    {line}\n" for line in RAY.splitlines()),
        PYTHON,
    ],
)
def test_an_llm_config_of_ray_is_the_same_model_wherever_it_stands(text: str) -> None:
    draft = only(text)
    assert draft.holes == {}
    assert draft.data["engine_config"] == {
        "model_id": "qwen",
        "hf_model_id": "Qwen/Qwen3-8B",
        "max_total_tokens": 4096,
        "runtime_env": {"env_vars": {"VLLM_LOGGING_LEVEL": "DEBUG"}},
    }
    assert draft.data["deployment_config"]["autoscaling_config"]["target_ongoing_requests"] == 2  # Ray's default
    said = notes(draft)
    assert "placement_group_config with 3 GPUs" in said and "lora_config s3://b/adapters" in said
    assert "sesame" not in text_of(draft)


def test_what_a_python_program_reads_from_outside_is_said_and_never_written() -> None:
    text = PYTHON.replace("max_replicas=4", "max_replicas=int(os.environ['MOST'])").replace(
        '"max_model_len": 4096', '"max_model_len": LEN'
    )
    text = text.replace("max_ongoing_requests=64", "max_ongoing_requests=limit()")
    draft = only(text)
    assert draft.data["deployment_config"] == {"autoscaling_config": {"target_ongoing_requests": 2, "min_replicas": 1}}
    assert draft.data["engine_config"]["max_total_tokens"] == HOLE
    assert "autoscaling_config.max_replicas: its value is not in the file" in notes(draft)
    assert "deployment_config.max_ongoing_requests: its value is not in the file: limit()" in notes(draft)


def test_llm_configs_in_other_files_are_read_beside_the_file() -> None:
    outer = "applications:\n- args: {llm_configs: [./qwen.yaml]}\n"
    inner = "model_loading_config: {model_id: qwen, model_source: Qwen/Qwen3-8B}\n"
    draft = only(outer, load={"./qwen.yaml": inner}.get)
    assert draft.data["engine_config"]["hf_model_id"] == "Qwen/Qwen3-8B"


def test_a_rayllm_file_keeps_its_comments_and_gets_todays_names() -> None:
    old = "# ours\ndeployment_config:\n  max_concurrent_queries: 8\nengine_config: {model_id: a/b}\nscaling_config:\n  num_workers: 1\n  resources_per_worker:\n    accelerator_type_l4: 0.001\n"
    written = text_of(only(old))
    assert written.startswith("# ours\n") and "max_ongoing_requests: 8" in written and "accelerator_type:L4" in written


def test_two_servers_of_one_name_are_two_files_and_a_remark() -> None:
    first, second = read_drafts(f"{SERVE} --port 1 &\n{SERVE} --port 2", "pd.sh")
    assert "the same model_id as pd.sh:1" in notes(second)
    assert "the same model_id" not in notes(first)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo hello", "serves nothing with vLLM"),
        ("pip install vllm && vllm bench serve --model a/b && vllm serve --help", "serves nothing with vLLM"),
        ("services: {web: {image: nginx}}", "serves nothing with vLLM"),
        ("FROM vllm/vllm-openai\nENTRYPOINT [\"vllm\", \"serve\"]", "without a model or an option"),
        ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec:\n  a: {{ .Values.a }}\n  b: c: d\n", "a template; render it"),
        (deployment('args: ["--model", "{{ .Values.model }}"]'), "a template; render it"),
        (deployment('command: [sh, -c, "vllm serve {{ .Values.model }}"]'), "a template; render it"),
        ("vllm serve " + "a" * 30_000, "in one line; at most"),
        ("apiVersion: v1\nkind: Pod\nx: !!python/object:os.system {}\n", "only plain YAML is allowed"),
        ("kind: Pod\na: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
         "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d]\n", "use fewer anchors"),
        ("", "serves nothing with vLLM"),
        ("(" * 3000 + "vllm serve a/b" + ")" * 3000, "no shell's grammar has it"),
        ("LLMConfig(a=" + "-" * 15_000 + "1)", "serves nothing with vLLM"),
    ],
)  # fmt: skip
def test_what_serves_nothing_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(InputErrors) as refused:
        read_drafts(text, "given")
    (finding,) = refused.value.findings
    assert said in finding.message and "\n" not in finding.sentence()


HOSTILE = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="vlm serv-$(){}[]'\"\\\n:|&;<>#=ABab/", max_size=300).map(lambda text: f"vllm serve {text}"),
    st.text(alphabet=" -:\n[]{}'\"abkind&*!|>", max_size=300).map(
        lambda text: f"kind: Pod\nspec:\n  containers:\n  - args: {text}"
    ),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(HOSTILE)
def test_no_text_ends_in_a_traceback_or_writes_what_nobody_can_read(text: str) -> None:
    try:
        drafts = read_drafts(text, "given")
    except InputErrors:
        return
    for draft in drafts:
        parse_document(text_of(draft).encode(), "m.yaml")


@pytest.mark.parametrize(
    ("text", "engine_config", "workers", "said"),
    [
        (
            "apiVersion: kubeai.org/v1\nkind: Model\nmetadata: {name: r1}\nspec:\n  engine: VLLM\n  url: hf://org/r1\n"
            "  args: [--max-model-len=32768, --tensor-parallel-size=8]\n  resourceProfile: amd-gpu-mi300x:8\n",
            {"model_id": "r1", "hf_model_id": "org/r1", "max_total_tokens": 32768},
            8,
            "it ran on AMD",
        ),
        (
            "modelArtifacts: {name: org/m, uri: 'pvc+hf://claim/org/m'}\naccelerator: {type: nvidia}\n"
            "decode:\n  replicas: 2\n  parallelism: {tensor: 2}\n"
            "  containers:\n  - {image: 'ghcr.io/llm-d/llm-d-cuda:v0', modelCommand: vllmServe, args: [--max-model-len=2048]}\n"
            "prefill: {create: true}\n",
            {"model_id": "org/m", "max_total_tokens": 2048},
            2,
            "prefill on replicas of its own",
        ),
        (
            "meta: {title: M}\nmodel: {model_id: org/m, base_args: [--max-model-len, '2048'], docker_image: 'vllm/vllm-openai:v0'}\n"
            "features:\n  reasoning: {args: [--reasoning-parser, qwen3]}\n  spec: {args: [--speculative-config, '{}']}\n"
            "opt_in_features: [spec]\n",
            {"model_id": "org/m", "max_total_tokens": 2048},
            1,
            "feature spec: the recipe leaves it to you",
        ),
        (
            "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: s}\nspec:\n  predictor:\n    model:\n"
            "      modelFormat: {name: huggingface}\n"
            "      args: [--model_name=llama, --model_id=org/m, --max_model_len=2048, --backend=vllm, --return_probabilities]\n",
            {"model_id": "llama", "hf_model_id": "org/m", "max_total_tokens": 2048},
            1,
            "",
        ),
        (
            "image: {repository: vllm/vllm-openai, tag: v0}\nreplicaCount: 3\n"
            "args: [--model, org/m, --max-model-len, 2048]\nresources: {limits: {nvidia.com/gpu: 4}}\n",
            {"model_id": "org/m", "max_total_tokens": 2048},
            1,
            "4 GPUs: vLLM used 1 of them",
        ),
    ],
    ids=["kubeai", "modelservice", "recipe", "huggingface-server", "chart"],
)
def test_other_peoples_formats(text: str, engine_config: dict[str, Any], workers: int, said: str) -> None:
    draft = only(text)
    found = draft.data["engine_config"]
    assert {key: found[key] for key in found if key != "engine_kwargs"} == engine_config
    assert draft.data["scaling_config"]["num_workers"] == workers
    assert said in notes(draft) + "".join(draft.holes.values())
