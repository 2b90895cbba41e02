"""The stack file's `keys` and `teams`: who may use which models, how much, and until when. No secret is in them."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from modelfleet.infra.stack.section import StackSection
from modelfleet.serving.config.validation import Matching

#: Names of keys and teams: they become words of HAProxy's maps, labels of metrics and columns of a table.
KEY_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z"
#: What `pulumi config set` makes of a day without quotes when it writes the file again (Go's text of a time).
PULUMI_MIDNIGHT = " 00:00:00 +0000 UTC"
#: Before 1970 a key would have no end at all, and the midnight after 9999-12-31 is no day of Python's calendar.
YEARS = range(2000, 9999)
#: HAProxy keeps millions of a budget's unit in 32 bits.
MOST_TOKENS, MOST_USD = 10**15, 10**9
KeyName = Annotated[
    str,
    Matching(KEY_NAME_PATTERN, "1 to 63 letters, digits, `.`, `_`, `-`, beginning with a letter or digit"),
]
ModelGlob = Annotated[
    str, Matching(r"^[A-Za-z0-9._/*?\[\]!-]+\Z", "a model's id or its adapter's name; `*` and `?` match any")
]


#: An address becomes words of HAProxy's configuration, and a file's name is a path of the project.
JWKS_PATTERN = (
    r"^(https://[A-Za-z0-9.-]+(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}))?(/[\x21\x23-\x26\x28-\x5b\x5d-\x7e]*)?"
    r"|(?!/)[A-Za-z0-9._/-]+\.json)\Z"
)
Claim = Annotated[
    str, Matching(r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z", "a claim's name, such as sub or org.team")
]


class Budget(StackSection):
    """What a key, or all keys of a team together, may use in a day or month of the calendar, in UTC."""

    tokens: PositiveInt | None = Field(
        None, le=MOST_TOKENS, description="Tokens of prompts and answers together, as `modelfleet usage` counts them."
    )
    usd: PositiveFloat | None = Field(
        None,
        le=MOST_USD,
        description="USD: the answers' tokens at the plan's USD per million output tokens of each model.",
    )
    per: Literal["day", "month"] = Field("month", description="The budget is whole again when the next one begins.")

    @model_validator(mode="after")
    def one_unit(self) -> Self:
        """Tokens or USD, not both."""
        if (self.tokens is None) == (self.usd is None):
            raise ValueError("name either tokens or usd")
        return self


class Allowance(StackSection):
    """What a key has and a team has."""

    models: list[ModelGlob] | None = Field(
        None,
        min_length=1,
        description="Models and adapters by name, globs allowed; default: all. Others do not exist for it.",
    )
    requests_per_minute: PositiveInt | None = Field(
        None, description="Requests per minute; a key's default: the gateway's."
    )
    tokens_per_minute: PositiveInt | None = Field(
        None, description="Tokens per minute, counted as the gateway's; a key's default: the gateway's."
    )
    concurrent_requests: PositiveInt | None = Field(None, description="Open requests; a key's default: the gateway's.")
    budget: Budget | None = Field(None, description="What it may use in a day or month; default: no end.")
    tags: dict[str, str] = Field(default_factory=dict, description="For the books, such as a cost centre.")


class ApiKey(Allowance):
    """One API key, without its secret."""

    team: KeyName | None = Field(None, description="The team that it belongs to, of `teams`; one at most.")
    expires: str | None = Field(
        None, description="Last day on which it is valid, in UTC, as 2026-12-31; default: until it is revoked."
    )

    @field_validator("expires", mode="before")
    @classmethod
    def is_a_day(cls, value: object) -> object:
        """A day of the calendar, as text. Where it has no quotes, Pulumi writes it back with an hour and a zone."""
        if value is None:
            return None
        try:
            day = date.fromisoformat(str(value).removesuffix(PULUMI_MIDNIGHT))
        except ValueError:
            day = None
        if day is None or day.year not in YEARS:
            raise ValueError(
                f"found {str(value)[:80]!r}; allowed is a day such as 2026-12-31, from {YEARS[0]} to {YEARS[-1]}"
            )
        return day.isoformat()

    @property
    def ends_at(self) -> int | None:
        """Seconds since 1970 (UTC) at which it is no longer valid: the midnight after its last day."""
        if self.expires is None:
            return None
        day = date.fromisoformat(self.expires) + timedelta(days=1)
        return int(datetime.combine(day, time(), UTC).timestamp())


class Team(Allowance):
    """Keys that share limits."""


class Jwt(StackSection):
    """Tokens of an OIDC issuer that the gateway takes beside API keys."""

    issuer: Annotated[
        str, Matching(r"^https://[\x21\x23-\x26\x28-\x5b\x5d-\x7e]+\Z", "the `iss` of its tokens, https://…")
    ] = Field(description="The `iss` of its tokens, to the letter.")
    audience: Annotated[
        str, Matching(r"^[A-Za-z0-9][\x21\x23-\x26\x28-\x5b\x5d-\x7e]*\Z", "the `aud` of tokens for this service")
    ] = Field(description="The `aud` of tokens for this service.")
    jwks: Annotated[
        str,
        Matching(JWKS_PATTERN, "an https:// URL of a host by name, or a .json file of the project"),
    ] = Field(description="The issuer's key set: `jwks_uri` of its /.well-known/openid-configuration, or a file.")
    name_claim: Claim = Field("sub", description="Who it is, in usage, logs and limits: `jwt:` and this claim.")
    team_claim: Claim | None = Field(
        None, description="One of `teams`, whose models and limits it has; default: all models, no team."
    )
    models_claim: Claim | None = Field(
        None, description="Names of lists in `models`, as text or a list; default: all models of its team."
    )
    models: dict[KeyName, Annotated[list[ModelGlob], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="Models by what `modelsClaim` may say. The first of them that a token names is its list.",
    )

    @model_validator(mode="after")
    def lists_have_a_claim(self) -> Self:
        """Neither without the other."""
        if (self.models_claim is None) != (not self.models):
            raise ValueError("name both modelsClaim and models, or neither")
        return self

    @property
    def asks_issuer(self) -> bool:
        """Whether the keys are the issuer's own, and no file."""
        return self.jwks.startswith("https://")

    @property
    def jwks_port(self) -> int:
        """Where the issuer listens."""
        return urlsplit(self.jwks).port or 443


Keys = dict[KeyName, ApiKey]
Teams = dict[KeyName, Team]
