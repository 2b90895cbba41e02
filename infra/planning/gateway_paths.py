"""The gateway's paths: those it passes on, those it answers itself, and the names that no model can have."""

from __future__ import annotations

from typing import Final

#: Paths whose body names the model. vLLM's other paths stay closed (`/invocations` would also generate text).
BY_MODEL: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/tokenize",
    "/detokenize",
    "/pooling",
    "/classify",
)
#: Those of them that take a form beside JSON (vLLM 0.32 `vllm/entrypoints/speech_to_text`).
FORMS: Final = ("/v1/audio/transcriptions", "/v1/audio/translations")
#: Those of them whose answer is generated.
GENERATES: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
#: Read-only paths of one model, below `/<slug>`.
DIRECT_GET: Final = ("/v1/models", "/health")
#: Paths that the gateway answers itself; `MODELS` has one more path below it for each model.
HEALTH, READY, MODELS = "/health", "/ready", "/v1/models"
#: On the port for metrics.
METRICS, KEY_METRICS = "/metrics", "/metrics/keys"
#: First segments of all of them: a model with such a slug would shadow a path, or never be reached.
RESERVED: Final = frozenset(path.split("/")[1] for path in (*BY_MODEL, HEALTH, READY, MODELS, METRICS, KEY_METRICS))
