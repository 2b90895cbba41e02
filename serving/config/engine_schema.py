"""`engine_config`: which model, where its weights come from, and how vLLM runs it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from modelfleet.serving.config.catalogs import engine_arguments
from modelfleet.serving.config.generate_kwargs import OVERRIDES
from modelfleet.serving.config.section import Section, Tokens
from modelfleet.serving.config.validation import KeyFault, Matching

MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
RAYLLM_LENGTH = 2048
"""RayLLM's default of `max_total_tokens`."""
WEIGHTS_ID = re.compile(rf"{MODEL_ID.pattern}|/[^\s]*")
MIRROR_CONFIGS = ("s3_mirror_config", "gcs_mirror_config", "azure_mirror_config")
#: What AWS's SDKs require of container credentials: https, or no network in between.
CredentialsUrl = Annotated[
    str,
    Matching(
        r"^(https://[^/\s]\S*|http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?(/\S*)?)$",
        "an https:// URL, or http:// to localhost",
    ),
]
ALL_BELOW = "/*"
"""End of an adapter's `name` and `source` that stand for every folder below a bucket's prefix."""
#: Name of a revision.
Name = Annotated[
    str,
    Matching(
        r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", "letters, digits, `.`, `_`, `/` and `-`, beginning with a letter or digit"
    ),
]
#: Name of an adapter, or of all below a prefix.
AdapterName = Annotated[
    str,
    Matching(
        r"^[A-Za-z0-9][A-Za-z0-9._/-]*(/\*)?$",
        "letters, digits, `.`, `_`, `/` and `-`, beginning with a letter or digit; `/*` at its end as in `source`",
    ),
]


class PromptFormat(Section):
    """Templates for chat prompts; without them the checkpoint's own chat template is used."""

    system: str = Field(
        description="Template of the system message; contains `{instruction}`.",
        examples=["<<SYS>>{instruction}<</SYS>>"],
    )
    assistant: str = Field(
        description="Template of an assistant message; contains `{instruction}`.", examples=[" {instruction} </s><s>"]
    )
    user: str = Field(
        description="Template of a user message; contains `{instruction}`, and `{system}` if system_in_user is true.",
        examples=["[INST] {system}{instruction} [/INST]"],
    )
    trailing_assistant: str = Field(description="Appended last, verbatim; may be empty.", examples=[""])
    default_system_message: str = Field(
        "", description="System message when the request has none.", examples=["You are helpful."]
    )
    system_in_user: bool = Field(
        False, description="The system text goes into the first user message at `{system}`.", examples=[True]
    )
    add_system_tags_even_if_message_is_empty: bool = Field(
        False, description="Render the system template for an empty system message too.", examples=[False]
    )
    strip_whitespace: bool = Field(True, description="Strip both ends of each message's content.", examples=[True])


class GenerationConfig(Section):
    """Defaults of text generation."""

    prompt_format: PromptFormat | None = Field(
        None, description="Chat templates; absent or null: the checkpoint's own.", examples=[None]
    )
    stopping_sequences: list[str | int | list[str | int]] | None = Field(
        None,
        description="Stop strings; an int or a list of ints means token ids. Added to the request's.",
        examples=[["<|im_end|>", 2]],
    )
    generate_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Sampling defaults that a request overrides, e.g. temperature.",
        examples=[{"temperature": 0.4}],
    )


class ExtraFile(Section):
    """One more file to fetch with the weights."""

    bucket_uri: str = Field(
        description="Object to fetch, s3://, gs:// or az://.", examples=["s3://weights/vocabulary.json"]
    )
    destination_path: str = Field(
        description="Where the node keeps it; `~` and environment variables are expanded.",
        examples=["~/vocabulary.json"],
    )


class S3AwsCredentials(Section):
    """Where temporary AWS credentials come from, when the environment's role is not enough."""

    create_aws_credentials_url: CredentialsUrl = Field(
        description="URL that answers a POST with AWS credentials as JSON; https, or http to localhost.",
        examples=["https://credentials.internal/aws"],
    )
    auth_token_env_variable: str | None = Field(
        None, description="Environment variable whose value is sent as a bearer token.", examples=["CREDENTIALS_TOKEN"]
    )


class S3MirrorConfig(Section):
    """Load the weights from this S3 prefix instead of the Hub."""

    bucket_uri: Annotated[str, Matching(r"^s3://[^/]+", "s3://BUCKET/PREFIX")] | None = Field(
        None, description="`s3://bucket/prefix`.", examples=["s3://weights/llama"]
    )
    s3_sync_args: list[str] = Field(
        default_factory=list,
        description="Flags of RayLLM's `aws s3 sync`: `--no-sign-request` works, others are refused.",
        examples=[["--no-sign-request"]],
    )
    s3_aws_credentials: S3AwsCredentials | None = Field(
        None,
        description="Endpoint for temporary credentials.",
        examples=[{"create_aws_credentials_url": "https://credentials.internal/aws"}],
    )
    extra_files: list[ExtraFile] = Field(
        default_factory=list,
        description="More files to fetch.",
        examples=[[{"bucket_uri": "s3://weights/vocabulary.json", "destination_path": "~/vocabulary.json"}]],
    )


class GcsMirrorConfig(Section):
    """Load the weights from this Google Cloud Storage prefix instead of the Hub."""

    bucket_uri: Annotated[str, Matching(r"^gs://[^/]+", "gs://BUCKET/PREFIX")] = Field(
        description="`gs://bucket/prefix`.", examples=["gs://weights/llama"]
    )
    extra_files: list[ExtraFile] = Field(
        default_factory=list,
        description="More files to fetch.",
        examples=[[{"bucket_uri": "s3://weights/vocabulary.json", "destination_path": "~/vocabulary.json"}]],
    )


class AzureMirrorConfig(Section):
    """Load the weights from this Azure Blob Storage prefix instead of the Hub."""

    bucket_uri: Annotated[str, Matching(r"^az://[^/]+", "az://CONTAINER/PREFIX")] = Field(
        description="`az://container/prefix`; `AZURE_STORAGE_ACCOUNT_NAME` names the account.",
        examples=["az://weights/llama"],
    )
    extra_files: list[ExtraFile] = Field(
        default_factory=list,
        description="More files to fetch.",
        examples=[[{"bucket_uri": "az://weights/vocabulary.json", "destination_path": "~/vocabulary.json"}]],
    )


class LoraAdapter(Section):
    """One LoRA adapter, served under its own model id; or all that are in a bucket's prefix."""

    name: AdapterName = Field(
        description="The adapter's model id in the API; `team/*` where `source` ends in `/*`.",
        examples=["team/llama-legal"],
    )
    source: str = Field(
        description="Hub id, `s3://`, `gs://` or `az://` prefix, or absolute path. `s3://bucket/prefix/*` is one "
        "adapter for each folder there that has an `adapter_config.json`; `plan` and `up` look.",
        examples=["s3://weights/llama-legal"],
    )
    revision: Name | None = Field(
        None,
        description="Commit, tag or branch of the Hub repository.",
        examples=["f5db02db724555f92da89c216ac04704f23d4590"],
    )

    @property
    def is_prefix(self) -> bool:
        """Whether it stands for all adapters below an S3 prefix."""
        return self.source.endswith(ALL_BELOW)

    @model_validator(mode="after")
    def all_below_a_prefix(self) -> Self:
        """Name and source end in `/*` together, and only S3 has such a source."""
        if self.is_prefix != self.name.endswith(ALL_BELOW):
            key = "name" if self.is_prefix else "source"
            raise KeyFault(key, f"found {getattr(self, key)!r}; name and source end in `/*` together, or neither does")
        if self.is_prefix and not self.source.startswith("s3://"):
            raise KeyFault("source", f"found {self.source!r}; `/*` is for s3://bucket/prefix/* only")
        if self.is_prefix and self.revision is not None:
            raise KeyFault("revision", f"found {self.revision!r}; a bucket has no revisions, so remove it")
        return self


class EngineConfig(Section):
    """Which model, and how vLLM runs it."""

    model_id: str = Field(
        description="The model's name in the API; unique in a stack.", examples=["meta-llama/Llama-2-7b-chat-hf"]
    )
    hf_model_id: str | None = Field(
        None,
        description="Hugging Face id or absolute path of the weights; default model_id.",
        examples=["/models/llama"],
    )
    revision: Name | None = Field(
        None,
        description="Commit, tag or branch of the Hub repository; a commit is safest.",
        examples=["f5db02db724555f92da89c216ac04704f23d4590"],
    )
    type: Literal["VLLMEngine"] = Field("VLLMEngine", description="The inference engine.", examples=["VLLMEngine"])
    model_type: Literal["text-generation", "text-generation-finetuned", "embedding"] = Field(
        "text-generation", description="What the model is for; shown to clients.", examples=["text-generation"]
    )
    model_url: str | None = Field(
        None,
        description="Where the model is described; shown to clients.",
        examples=["https://huggingface.co/meta-llama/Llama-2-7b-chat-hf"],
    )
    model_description: str | None = Field(
        None, description="One sentence about the model; shown to clients.", examples=["Llama 2 for chats."]
    )
    tokenizer_id: str | None = Field(
        None,
        description="Tokenizer's Hub id, when it differs from the weights'.",
        examples=["hf-internal-testing/llama-tokenizer"],
    )
    max_total_tokens: Tokens | None = Field(
        None,
        description="Tokens of prompt and answer together: the model length, and the default of max_tokens. Default: "
        "the checkpoint's, or the longest that fits; 2048 in a file with a prompt_format.",
        examples=[4096],
    )
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="vLLM engine arguments, e.g. `gpu_memory_utilization: 0.9`.",
        examples=[{"max_num_seqs": 64}],
    )
    generation: GenerationConfig = Field(
        default_factory=GenerationConfig,
        description="Defaults of text generation.",
        examples=[{"stopping_sequences": ["</s>"]}],
    )
    runtime_env: dict[str, Any] = Field(
        default_factory=dict,
        description="Ray runtime environment of replica and workers.",
        examples=[{"env_vars": {"OMP_NUM_THREADS": "8"}}],
    )
    env_vars_to_propogate: list[str] = Field(
        default_factory=list,
        description="Environment variables of the node for the replica and its workers (RayLLM's spelling).",
        examples=[["TEAM_PROXY"]],
    )
    s3_mirror_config: S3MirrorConfig | None = Field(
        None, description="Weights from S3 instead of the Hub.", examples=[{"bucket_uri": "s3://weights/llama"}]
    )
    gcs_mirror_config: GcsMirrorConfig | None = Field(
        None,
        description="Weights from Google Cloud Storage instead of the Hub.",
        examples=[{"bucket_uri": "gs://weights/llama"}],
    )
    azure_mirror_config: AzureMirrorConfig | None = Field(
        None,
        description="Weights from Azure Blob Storage instead of the Hub.",
        examples=[{"bucket_uri": "az://weights/llama"}],
    )
    lora: list[LoraAdapter] = Field(
        default_factory=list,
        description="LoRA adapters served with the model.",
        examples=[[{"name": "team/llama-legal", "source": "s3://weights/llama-legal"}]],
    )

    @classmethod
    def explain(cls, key: str) -> str | None:
        """A vLLM argument one level too high is the commonest slip."""
        return "unknown here; it belongs in engine_kwargs" if key in engine_arguments() else None

    @field_validator("model_id")
    @classmethod
    def model_id_is_a_name(cls, value: str) -> str:
        """A Hub-like id; `--` means `/` in a slug."""
        if not MODEL_ID.fullmatch(value) or "--" in value or len(value) > 96:
            raise ValueError(
                f"found {value[:100]!r}; allowed is `name` or `organization/name` of letters, digits, `.`, `_`, `-`, "
                "without `--`, at most 96 characters"
            )
        return value

    @field_validator("hf_model_id", "tokenizer_id")
    @classmethod
    def weights_are_an_id_or_a_path(cls, value: str | None) -> str | None:
        """A bucket has its own section."""
        if value is not None and (not WEIGHTS_ID.fullmatch(value) or ".." in value):
            hint = f"; a bucket belongs in {' or '.join(MIRROR_CONFIGS)}" if "://" in value else ""
            raise ValueError(f"found {value[:100]!r}; allowed is a Hugging Face id or an absolute path{hint}")
        return value

    @model_validator(mode="after")
    def one_mirror_at_most(self) -> Self:
        """S3, Google Cloud Storage or Azure."""
        given = [key for key in MIRROR_CONFIGS if getattr(self, key) is not None]
        if len(given) > 1:
            raise KeyFault(given[1], f"{' and '.join(given)} exclude each other; keep one of them")
        return self

    @property
    def mirror_config(self) -> S3MirrorConfig | GcsMirrorConfig | AzureMirrorConfig | None:
        """The bucket that the model file names, whichever cloud's."""
        return self.s3_mirror_config or self.gcs_mirror_config or self.azure_mirror_config

    @property
    def speaks_rayllm(self) -> bool:
        """Whether the file has RayLLM's chat templates, and with them RayLLM's defaults."""
        return self.generation.prompt_format is not None

    @property
    def length(self) -> int | None:
        """The model length in tokens; None where the checkpoint and the memory decide it."""
        return RAYLLM_LENGTH if self.max_total_tokens is None and self.speaks_rayllm else self.max_total_tokens

    @property
    def generation_config(self) -> str:
        """vLLM's `generation_config`: `auto` has the checkpoint's sampling, `vllm` temperature 1.0 and no top_p."""
        return str(self.engine_kwargs.get("generation_config") or ("vllm" if self.speaks_rayllm else "auto"))

    @property
    def sampling_named(self) -> bool:
        """Whether the file itself says how requests are sampled that do not say it."""
        overrides = self.engine_kwargs.get("override_generation_config")
        return bool(overrides) or bool(OVERRIDES & self.generation.generate_kwargs.keys())

    @property
    def weights_id(self) -> str:
        """What is loaded: the Hub id or absolute path of the weights."""
        return self.hf_model_id or self.model_id
