"""Nothing secret leaves the doctor, whatever stands around it."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfleet.doctor.diagnose import LONGEST, as_json, short
from modelfleet.doctor.redact import HIDDEN, redacted
from tests.unit.doctor.builders import evidence, judged

LETTERS = string.ascii_letters + string.digits
SECRETS = st.text(LETTERS, min_size=16, max_size=60)
AROUND = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=40)

FORMS = (
    "Authorization: Bearer {}",
    '{{"authorization": "Bearer {}"}}',
    "authorization=Basic {}",
    "Bearer {}",
    "HF_TOKEN={}",
    "HUGGING_FACE_HUB_TOKEN: '{}'",
    '"aws_secret_access_key": "{}"',
    "AWS_SECRET_ACCESS_KEY={}",
    "AWS_SESSION_TOKEN={}",
    "api-key: {}",
    "x-api-key={}",
    "password = {}",
    "PULUMI_CONFIG_PASSPHRASE={}",
    "https://bucket.s3.amazonaws.com/k?X-Amz-Credential=a&X-Amz-Signature={}",
    "https://account.blob.core.windows.net/c?sv=1&sig={}&se=2",
    "https://user:{}@example.org/simple",
    "redis://:{}@host:6379",
    "hf_{}",
    "sk-{}",
    "AKIA" + "{}",
    "ghp_{}",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
)


@pytest.mark.parametrize("form", FORMS)
@given(secret=SECRETS, before=AROUND, after=AROUND)
def test_a_secret_is_hidden_in_every_form(form: str, secret: str, before: str, after: str) -> None:
    if form.startswith("AKIA"):
        secret = secret.upper()
    text = f"{before}\n{form.format(secret)}\n{after}"
    assert secret not in redacted(text).replace(before, "").replace(after, "")


@given(SECRETS, st.integers(LONGEST - 40, LONGEST))
def test_a_secret_at_the_cut_is_hidden_too(secret: str, padding: int) -> None:
    """Half of `user:password@` is not recognised, so the text is redacted before it is cut."""
    shown = short(f"{' ' * 3}{'-' * padding} https://user:{secret}@example.org")
    assert secret[:3] not in shown.partition("user:")[2]


def test_plain_words_stay() -> None:
    text = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. models/a.yaml:7 max_tokens: 5 tokenizer: auto"
    assert redacted(text) == text


@given(SECRETS)
def test_neither_the_sentence_nor_its_evidence_has_the_secret(secret: str) -> None:
    (cause,) = judged(evidence("application", f"DEPLOY_FAILED: Error:\nHTTPError: Authorization: Bearer {secret}"))
    assert secret not in str(cause.as_json()) and HIDDEN in cause.sentence
    assert secret not in str(as_json(cause.evidence[0]))
