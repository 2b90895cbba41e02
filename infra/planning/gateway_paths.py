"""The gateway's paths: those it passes on, those it answers itself, and the names that no model can have."""

from __future__ import annotations

from typing import Final

#: Paths whose body names the model: all on which vLLM 0.32 answers, but for the halves of a request that its servers
#: send each other (`derender`, `/inference/v1`), which no client has a use for. docs/gateway.md says what stays closed.
BY_MODEL: Final = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/v1/systemone",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/chat/completions/render",
    "/v1/completions/render",
    "/v1/messages/render",
    "/v1/responses/render",
    "/v2/embed",
    "/v2/rerank",
    "/rerank",
    "/score",
    "/generative_scoring",
    "/invocations",
    "/tokenize",
    "/detokenize",
    "/pooling",
    "/classify",
)
#: Those of them that take a form beside JSON (vLLM 0.32 `vllm/entrypoints/speech_to_text`).
FORMS: Final = ("/v1/audio/transcriptions", "/v1/audio/translations")
#: Those of them whose answer is generated.
GENERATES: Final = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/invocations",
)
#: Those of them that ask about each of several texts, and so read what they have in common with each of them: the key
#: of the several, and the keys of what is common. vLLM 0.32 `vllm/entrypoints/generate/generative_scoring/serving.py`,
#: `generate/structured_decisions/serving.py`, `pooling/scoring/protocol.py`.
EACH: Final = {
    "/generative_scoring": ("items", ("query",)),
    "/v1/systemone": ("questions", ("state", "instructions", "images", "audio", "videos")),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), ("documents", ("query",))),
}
#: Read-only paths of one model, below `/<slug>`.
DIRECT_GET: Final = ("/v1/models", "/health", "/version")
#: Paths that the gateway answers itself; `MODELS` has one more path below it for each model.
HEALTH, READY, MODELS, VERSION = "/health", "/ready", "/v1/models", "/version"
#: On the port for metrics.
METRICS, KEY_METRICS = "/metrics", "/metrics/keys"
#: On the same port, for the scaling policy: `QUEUES/<slug>` is how many requests wait for a model.
QUEUES = "/queues"
#: First segments of all of them: a model with such a slug would shadow a path, or never be reached.
RESERVED: Final = frozenset(
    path.split("/")[1] for path in (*BY_MODEL, HEALTH, READY, MODELS, VERSION, METRICS, KEY_METRICS)
)
