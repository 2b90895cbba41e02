"""An issuer's key set (JWKS, RFC 7517): read from its URL or a file, and turned into what HAProxy verifies with."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from modelfleet.infra.planning.plan import JwtKey
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding, SetupError, Severity

TIMEOUT_S: Final = 10.0
#: As in `infra/gateway/jwks.lua`, which reads the same key sets while the gateway runs.
MOST_BYTES: Final = 1 << 18
MOST_KEYS: Final = 64
#: Fewer bits are no protection (RFC 7518, 3.3).
FEWEST_BITS: Final = 2048
#: More cost too much time for each token.
MOST_BITS: Final = 8192
MOST_EXPONENT_BITS: Final = 32
RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVES: Final[Mapping[str, str]] = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
#: A key id becomes a word of HAProxy's maps, between `|` and a blank.
KID: Final = re.compile(r"[\x21-\x7b\x7d\x7e]{1,200}")


class JwksError(Exception):
    """The key set cannot be read."""


class SilentIssuerError(JwksError):
    """The issuer does not answer, which is nobody's fault here."""


def read_jwks(
    stack: LoadedStack, root: Path, *, network: bool, needed: bool = False
) -> tuple[tuple[JwtKey, ...], list[Finding]]:
    """The issuer's usable keys, and what is wrong; without `network` a URL is a notice, and there are none.

    Raises `SetupError` where they are `needed` and the issuer does not answer; else that is a warning.
    """
    jwt = stack.config.jwt
    if jwt is None:
        return (), []
    if jwt.asks_issuer and not (network or needed):
        message = f"the issuer's keys are read when {stack.name} is deployed, not now"
        return (), [stack.finding(("jwt", "jwks"), message, Severity.NOTICE)]
    try:
        found, left_out = keys_of(_text(jwt.jwks, root))
    except SilentIssuerError as error:
        finding = stack.finding(("jwt", "jwks"), f"{jwt.jwks} {error}", Severity.WARNING)
        if needed:
            raise SetupError(finding.sentence()) from None
        return (), [finding]
    except JwksError as error:
        return (), [stack.finding(("jwt", "jwks"), f"{jwt.jwks} {error}")]
    if not found:
        reasons = f" ({'; '.join(left_out)})" if left_out else ""
        return (), [stack.finding(("jwt", "jwks"), f"{jwt.jwks} has no key that HAProxy verifies with{reasons}")]
    notices = [stack.finding(("jwt", "jwks"), f"left out: {one}", Severity.NOTICE) for one in left_out]
    return found, notices


def _text(where: str, root: Path) -> bytes:
    if not where.startswith("https://"):
        try:
            return (root / where).read_bytes()[: MOST_BYTES + 1]
        except OSError as error:
            raise JwksError(f"cannot be read: {error.strerror or error}") from None
    from httpx2 import HTTPError, InvalidURL, stream

    # No redirects: they might lead to an address without TLS, or of somebody else.
    try:
        with stream("GET", where, timeout=TIMEOUT_S, follow_redirects=False) as answer:
            if not answer.is_success:
                raise SilentIssuerError(
                    f"answers with status {answer.status_code}; it has to be the key set's own address"
                )
            data = b""
            for part in answer.iter_bytes():
                data += part
                if len(data) > MOST_BYTES:
                    break
            return data
    except (HTTPError, InvalidURL, OSError) as error:
        raise SilentIssuerError(f"does not answer: {error}") from None


def keys_of(data: bytes) -> tuple[tuple[JwtKey, ...], list[str]]:
    """The usable keys of a key set, sorted by id, and why others are left out; raises `JwksError` for what is none."""
    if len(data) > MOST_BYTES:
        raise JwksError(f"has more than {MOST_BYTES >> 10} KiB")
    try:
        keys = json.loads(data)["keys"]
        if not isinstance(keys, list):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise JwksError('is no key set, which is {"keys": [...]}') from None
    found: dict[str, JwtKey] = {}
    left_out = []
    for index, key in enumerate(keys):
        try:
            made = _key(key)
        except (ValueError, TypeError, KeyError) as error:
            left_out.append(f"keys[{index}]: {error.args[0] if error.args else 'cannot be read'}")
            continue
        if made is not None and made.kid in found:
            raise JwksError(f"has two keys with the id {made.kid}")
        if made is not None:
            found[made.kid] = made
    if len(found) > MOST_KEYS:
        raise JwksError(f"has more than {MOST_KEYS} keys")
    return tuple(found[kid] for kid in sorted(found)), left_out


def _key(key: Any) -> JwtKey | None:
    """None for a key that is not for signatures; raises `ValueError` with the reason for one that cannot be used."""
    if not isinstance(key, dict):
        raise ValueError("is no object")
    if key.get("use", "sig") != "sig":
        return None
    kid, kind = key.get("kid"), key.get("kty")
    if not isinstance(kid, str) or not KID.fullmatch(kid):
        raise ValueError("has no `kid` of 1 to 200 visible characters, without `|`")
    algorithms: tuple[str, ...]
    if kind == "RSA":
        algorithms, pem = RSA, _rsa(_number(key, "n"), _number(key, "e"))
    elif kind == "EC" and key.get("crv") in CURVES:
        algorithms, pem = (CURVES[key["crv"]],), _ec(key["crv"], _number(key, "x"), _number(key, "y"))
    else:
        raise ValueError(f"{kid} is of a kind ({kind} {key.get('crv', '')}".rstrip() + ") that HAProxy does not verify")
    named = key.get("alg")
    if named is not None and named not in algorithms:
        raise ValueError(f"{kid} is for {named}, which HAProxy does not verify with it")
    return JwtKey(kid, (named,) if named else algorithms, pem)


def _number(key: Mapping[str, Any], name: str) -> int:
    value = key.get(name)
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", value):
        raise ValueError(f"{key['kid']} has no `{name}` in base64url")
    return int.from_bytes(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)), "big")


def _rsa(n: int, e: int) -> str:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

    if n.bit_length() < FEWEST_BITS:
        raise ValueError(f"has {n.bit_length()} bits, and fewer than {FEWEST_BITS} are no protection")
    if n.bit_length() > MOST_BITS or e.bit_length() > MOST_EXPONENT_BITS:
        raise ValueError(
            f"has {n.bit_length()} bits and an exponent of {e.bit_length()}; "
            f"allowed are {MOST_BITS} and {MOST_EXPONENT_BITS}"
        )
    return _pem(RSAPublicNumbers(e, n).public_key())


def _ec(curve: str, x: int, y: int) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec

    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    return _pem(ec.EllipticCurvePublicNumbers(x, y, curves[curve]).public_key())


def _pem(key: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return str(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())
