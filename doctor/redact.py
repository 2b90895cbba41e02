"""Nothing secret leaves the doctor: keys, tokens, credentials and signatures become `***`. Pure."""

from __future__ import annotations

import re
from typing import Final

HIDDEN: Final = "***"

#: Names after which a value is secret, however it is written: `HF_TOKEN=…`, `"password": "…"`, `api-key: …`.
_NAMES: Final = (
    r"(?:[A-Za-z0-9_.-]*(?:passw(?:or)?d|passphrase|secret(?:[_-]?access)?(?:[_-]?key)?|(?:api|access|private)[_-]?key"
    r"|[_-]?token|credential|signature))"
)
#: A value: quoted to its closing quote, or else up to what ends a word.
_VALUE: Final = r"(?:\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[^\s\"',;&}\])]+)"

_RULES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # A PEM block, whole or cut off.
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
    # An Authorization header in any spelling, and a bare `Bearer …`.
    (
        re.compile(r"(?i)((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?:[A-Za-z0-9-]+\s+)?[^\s\"',]+[^\n\"']*"),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {HIDDEN}"),
    # The query of a presigned URL, S3's, Google's and Azure's: the whole query, for parts of it are enough to guess by.
    (
        re.compile(r"(?i)(\bhttps?://[^\s?\"']+)\?[^\s\"']*(?:signature|x-amz-|x-goog-|sig=|token)[^\s\"']*"),
        rf"\1?{HIDDEN}",
    ),
    # User and password in a URL.
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/@\"']*:[^\s/@\"']*@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    # Tokens that show what they are: Hugging Face, OpenAI's form (ours too), AWS key ids, GitHub, JSON Web Tokens.
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), HIDDEN),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{8,}"), HIDDEN),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), HIDDEN),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{16,}"), HIDDEN),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"), HIDDEN),
    (re.compile(r"\bk8s-aws-v1\.[A-Za-z0-9_=-]+"), HIDDEN),
    (re.compile(rf"(?i)(\b{_NAMES}[\"']?\s*[:=]\s*){_VALUE}"), rf"\1{HIDDEN}"),
)


def redacted(text: str) -> str:
    """`text` with everything that looks like a credential replaced."""
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text
