"""The model file: one YAML with RayLLM's three sections, as pydantic models.

Key names are today's (Ray Serve 2.60, vLLM 0.32); RayLLM's older spellings are normalised before these models
see them (`legacy.py`). Every field's description becomes the reference in `models/README.md`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from serving.config.accelerators import CPU, accelerator_of
from serving.config.validation import KeyFault

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
WEIGHTS_ID = re.compile(rf"{MODEL_ID.pattern}|/[^\s]*")

Count = Annotated[int, Field(ge=0, le=1_000_000)]
PositiveCount = Annotated[int, Field(ge=1, le=1_000_000)]
Amount = Annotated[float, Field(ge=0, le=1e12)]
PositiveAmount = Annotated[float, Field(gt=0, le=1e12)]


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are not changed after loading, null is left out."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def null_is_left_out(cls, data: Any) -> Any:
        """A key without a value counts as left out."""
        if not isinstance(data, dict):
            return data
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {key: value for key, value in data.items() if value is not None or key not in optional}

    @field_validator("*", mode="before")
    @classmethod
    def yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `on` as true, which Python counts as 1."""
        field = cls.model_fields[info.field_name] if info.field_name else None
        if isinstance(value, bool) and field is not None and field.annotation in (int, float, int | None, float | None):
            raise ValueError(f"found {str(value).lower()}; a number is expected")
        return value


class AutoscalingConfig(Section):
    """Ray Serve's autoscaling of a model's replicas."""

    min_replicas: Count = Field(1, description="Fewest replicas; 0 lets the model go to zero.")
    initial_replicas: Count | None = Field(None, description="Replicas at first deployment; default min_replicas.")
    max_replicas: PositiveCount = Field(1, description="Most replicas.")
    target_ongoing_requests: PositiveAmount = Field(
        1.0,
        description="Ongoing requests per replica that the autoscaler aims at; about 40 % of max_ongoing_requests.",
    )
    metrics_interval_s: PositiveAmount = Field(10.0, description="Seconds between a replica's reports.")
    look_back_period_s: PositiveAmount = Field(30.0, description="Seconds over which reports are averaged.")
    upscaling_factor: PositiveAmount = Field(1.0, description="Gain of each upscaling decision; below 1 slows it.")
    downscaling_factor: PositiveAmount = Field(1.0, description="Gain of each downscaling decision; below 1 slows it.")
    upscale_delay_s: Amount = Field(30.0, description="Seconds that more load must last before replicas are added.")
    downscale_delay_s: Amount = Field(600.0, description="Seconds that less load must last before replicas go.")
    downscale_to_zero_delay_s: Amount | None = Field(
        None, description="Seconds before the last replica goes; default downscale_delay_s."
    )

    @model_validator(mode="after")
    def min_initial_and_max_are_in_order(self) -> Self:
        """`min <= initial <= max`."""
        initial = self.min_replicas if self.initial_replicas is None else self.initial_replicas
        if not self.min_replicas <= initial <= self.max_replicas:
            raise KeyFault(
                "max_replicas" if self.min_replicas > self.max_replicas else "initial_replicas",
                f"found min_replicas {self.min_replicas}, initial_replicas {initial}, max_replicas "
                f"{self.max_replicas}; allowed is min_replicas <= initial_replicas <= max_replicas",
            )
        return self


class RayActorOptions(Section):
    """Resources of the replica actor itself, beside its workers' (RayLLM's first bundle)."""

    num_cpus: Amount | None = Field(None, description="CPUs of the replica actor; default 1.")
    num_gpus: Amount | None = Field(
        None, description="GPUs of the replica actor itself; default 0. The workers bring their own."
    )
    memory: PositiveCount | None = Field(None, description="Bytes of memory that the replica actor reserves.")
    resources: dict[str, PositiveAmount] = Field(
        default_factory=dict, description="Custom resources, e.g. `accelerator_type:L4: 0.001`."
    )
    runtime_env: dict[str, Any] = Field(default_factory=dict, description="Ray runtime environment of the replica.")


class DeploymentConfig(Section):
    """Ray Serve's deployment options of the model."""

    autoscaling_config: AutoscalingConfig | None = Field(None, description="Absent: num_replicas fixed replicas.")
    num_replicas: PositiveCount | None = Field(
        None, description="Fixed number of replicas, when autoscaling_config is absent; default 1."
    )
    max_ongoing_requests: PositiveCount = Field(
        100, description="Requests that one replica works on at a time; the rest waits."
    )
    max_queued_requests: int = Field(
        -1, ge=-1, description="Requests that may wait per proxy; -1 is no limit, beyond it 503."
    )
    ray_actor_options: RayActorOptions = Field(
        default_factory=RayActorOptions, description="Resources of the replica actor."
    )
    health_check_period_s: PositiveAmount = Field(10.0, description="Seconds between health checks of a replica.")
    health_check_timeout_s: PositiveAmount = Field(30.0, description="Seconds until a health check counts as failed.")
    graceful_shutdown_wait_loop_s: PositiveAmount = Field(
        2.0, description="Seconds between checks for open requests at shutdown."
    )
    graceful_shutdown_timeout_s: PositiveAmount = Field(60.0, description="Seconds that open requests get at shutdown.")

    @model_validator(mode="after")
    def replicas_are_given_once(self) -> Self:
        """Fixed or autoscaled, not both."""
        if self.num_replicas is not None and self.autoscaling_config is not None:
            raise KeyFault("num_replicas", "num_replicas and autoscaling_config exclude each other; keep one of them")
        return self


class PromptFormat(Section):
    """Templates from which a chat prompt is made; absent, the checkpoint's own chat template is used."""

    system: str = Field(description="Template of the system message; contains `{instruction}`.")
    assistant: str = Field(description="Template of an assistant message; contains `{instruction}`.")
    user: str = Field(
        description="Template of a user message; contains `{instruction}`, and `{system}` when system_in_user."
    )
    trailing_assistant: str = Field(description="Appended last, verbatim; may be empty.")
    default_system_message: str = Field("", description="System message when the request has none.")
    system_in_user: bool = Field(False, description="The system text goes into the first user message at `{system}`.")
    add_system_tags_even_if_message_is_empty: bool = Field(
        False, description="Render the system template for an empty system message too."
    )
    strip_whitespace: bool = Field(True, description="Strip both ends of each message's content.")


class GenerationConfig(Section):
    """Defaults of text generation."""

    prompt_format: PromptFormat | None = Field(
        None, description="Chat templates; absent or null: the checkpoint's own."
    )
    stopping_sequences: list[str | int | list[str | int]] | None = Field(
        None, description="Stop strings; an int or a list of ints is token ids. Merged with the request's."
    )
    generate_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Sampling defaults that a request overrides, e.g. temperature."
    )


class ExtraFile(Section):
    """One more file that is fetched beside the weights."""

    bucket_uri: str = Field(description="Object to fetch, s3:// or gs://.")
    destination_path: str = Field(description="Where the node keeps it; `~` and environment variables are expanded.")


class S3AwsCredentials(Section):
    """Where temporary AWS credentials come from, when the environment's role is not enough."""

    create_aws_credentials_url: str = Field(description="URL that answers a POST with AWS credentials as JSON.")
    auth_token_env_variable: str | None = Field(
        None, description="Environment variable whose value is sent as a bearer token."
    )


class S3MirrorConfig(Section):
    """Load the weights from this S3 prefix instead of the Hub."""

    bucket_uri: str | None = Field(None, description="`s3://bucket/prefix`.", pattern=r"^s3://[^/]+")
    s3_sync_args: list[str] = Field(
        default_factory=list,
        description="Flags of RayLLM's `aws s3 sync`: `--no-sign-request` acts, others are refused.",
    )
    s3_aws_credentials: S3AwsCredentials | None = Field(None, description="Endpoint for temporary credentials.")
    extra_files: list[ExtraFile] = Field(default_factory=list, description="More files to fetch.")


class GcsMirrorConfig(Section):
    """Load the weights from this Google Cloud Storage prefix instead of the Hub."""

    bucket_uri: str = Field(description="`gs://bucket/prefix`.", pattern=r"^gs://[^/]+")
    extra_files: list[ExtraFile] = Field(default_factory=list, description="More files to fetch.")


class LoraAdapter(Section):
    """One LoRA adapter, served under its own model id."""

    name: str = Field(description="The adapter's model id in the API.", pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    source: str = Field(description="Hub id, `s3://` or `gs://` prefix, or absolute path.")


class EngineConfig(Section):
    """Which model, and how vLLM runs it."""

    model_id: str = Field(description="The model's name in the API; unique in a stack.")
    hf_model_id: str | None = Field(
        None, description="Hugging Face id or absolute path of the weights; default model_id."
    )
    revision: str | None = Field(
        None,
        description="Commit, tag or branch of the Hub repository; a commit is safest.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
    )
    type: Literal["VLLMEngine"] = Field("VLLMEngine", description="The inference engine.")
    model_type: Literal["text-generation", "text-generation-finetuned", "embedding"] = Field(
        "text-generation", description="What the model is for; shown to clients."
    )
    model_url: str | None = Field(None, description="Where the model is described; shown to clients.")
    model_description: str | None = Field(None, description="One sentence about the model; shown to clients.")
    tokenizer_id: str | None = Field(None, description="Tokenizer's Hub id, when it differs from the weights'.")
    max_total_tokens: PositiveCount = Field(
        2048, description="Tokens of prompt and answer together: the model length, and default max_tokens."
    )
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="vLLM engine arguments, e.g. `gpu_memory_utilization: 0.9`."
    )
    generation: GenerationConfig = Field(default_factory=GenerationConfig, description="Defaults of text generation.")
    runtime_env: dict[str, Any] = Field(
        default_factory=dict, description="Ray runtime environment of replica and workers."
    )
    env_vars_to_propogate: list[str] = Field(
        default_factory=list,
        description="Environment variables of the node that replica and workers see (RayLLM's spelling).",
    )
    s3_mirror_config: S3MirrorConfig | None = Field(None, description="Weights from S3 instead of the Hub.")
    gcs_mirror_config: GcsMirrorConfig | None = Field(
        None, description="Weights from Google Cloud Storage instead of the Hub."
    )
    lora: list[LoraAdapter] = Field(default_factory=list, description="LoRA adapters served beside the model.")

    @field_validator("model_id")
    @classmethod
    def model_id_is_a_name(cls, value: str) -> str:
        """A Hub-like id; `--` stands for `/` in a slug."""
        if not MODEL_ID.fullmatch(value) or "--" in value or len(value) > 96:
            raise ValueError(
                f"found {value[:100]!r}; allowed is `name` or `organization/name` of letters, digits, `.`, `_`, `-`, "
                "without `--`, at most 96 characters"
            )
        return value

    @field_validator("hf_model_id", "tokenizer_id")
    @classmethod
    def weights_are_an_id_or_a_path(cls, value: str | None) -> str | None:
        """A bucket has a section of its own."""
        if value is not None and (not WEIGHTS_ID.fullmatch(value) or ".." in value):
            hint = "; a bucket goes into s3_mirror_config or gcs_mirror_config" if "://" in value else ""
            raise ValueError(f"found {value[:100]!r}; allowed is a Hugging Face id or an absolute path{hint}")
        return value

    @model_validator(mode="after")
    def one_mirror_at_most(self) -> Self:
        """S3 or GCS."""
        if self.s3_mirror_config is not None and self.gcs_mirror_config is not None:
            raise KeyFault(
                "gcs_mirror_config", "s3_mirror_config and gcs_mirror_config exclude each other; keep one of them"
            )
        return self

    @property
    def weights_id(self) -> str:
        """What is loaded: the Hub id or absolute path of the weights."""
        return self.hf_model_id or self.model_id


class ScalingConfig(Section):
    """What one replica takes: its workers and where they are placed."""

    num_workers: PositiveCount = Field(description="Workers per replica: the tensor parallel size.")
    num_gpus_per_worker: Literal[0, 1] = Field(1, description="GPUs per worker: 1, or 0 on CPU.")
    num_cpus_per_worker: Amount = Field(1.0, description="CPUs per worker; usually 8.")
    placement_strategy: Literal["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"] = Field(
        "PACK", description="Ray placement strategy; STRICT_PACK keeps all workers on one node."
    )
    resources_per_worker: dict[str, PositiveAmount] = Field(
        default_factory=dict, description="Custom resources per worker, e.g. `accelerator_type:L4: 0.001`."
    )
    pg_timeout_s: PositiveAmount = Field(600.0, description="Accepted for old files; has no effect.")

    @field_validator("num_gpus_per_worker", mode="before")
    @classmethod
    def one_gpu_or_none(cls, value: object) -> object:
        """Says where more GPUs are asked for; `1.0` and `"1"` are 1, as in RayLLM."""
        try:
            gpus = float(value) if isinstance(value, int | float | str) else None
        except ValueError:
            return value
        if gpus is None or gpus in (0, 1):
            return value if gpus is None or isinstance(value, bool) else int(gpus)
        raise ValueError(f"found {value}; a worker has one GPU (0 on {CPU}): change num_workers instead")


class ModelConfig(Section):
    """One model file."""

    deployment_config: DeploymentConfig = Field(
        default_factory=DeploymentConfig, description="Ray Serve options of the model."
    )
    engine_config: EngineConfig = Field(description="Which model, and how vLLM runs it.")
    scaling_config: ScalingConfig = Field(description="What one replica takes.")
    enabled: bool = Field(True, description="false leaves the model out of every stack.")

    def accelerators_named(self) -> set[str]:
        """Every accelerator that the two resource maps name."""
        maps = (self.scaling_config.resources_per_worker, self.deployment_config.ray_actor_options.resources)
        return {name for one in maps for resource in one if (name := accelerator_of(resource))}

    @property
    def accelerator(self) -> str:
        """The accelerator that decides the pool; `CPU` when no GPU is asked for."""
        return min(self.accelerators_named(), default=CPU)

    @property
    def model_id(self) -> str:
        """The model's public name."""
        return self.engine_config.model_id

    @property
    def slug(self) -> str:
        """The id with `/` as `--`: name of the file, the Serve application and the mirror's prefix."""
        return slug_of(self.model_id)


def slug_of(model_id: str) -> str:
    """`organization/name` → `organization--name`."""
    return model_id.replace("/", "--")
