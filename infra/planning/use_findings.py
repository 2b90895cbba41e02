"""What decides about a model beside its memory: its licence, who may download it, and whose code it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from modelfleet.infra.catalog import Catalog, CatalogModel
from modelfleet.infra.catalog.licences import licence_limit
from modelfleet.infra.planning.applications import mirror_plan
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.document import KeyPath
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import LoadedModel


def use_notices(row: CatalogModel | None, facts: ModelFacts | None) -> Iterator[tuple[str, str]]:
    """What is worth knowing before a model is deployed: a word for each notice, and its sentence."""
    if row is not None and row.licence and (limit := licence_limit(row.licence)):
        yield "licence", f"its licence {row.licence!r} limits {limit}; read it before you serve the model"
    if row is not None and row.gated:
        yield "gated", "the Hub asks for access: HF_TOKEN must belong to somebody who accepted its licence"
    if facts is not None and facts.checkpoint.raw.get("auto_map"):
        yield (
            "code",
            "its config names code of its own (auto_map): vLLM needs trust_remote_code where it has no class for it",
        )


def use_findings(
    model: LoadedModel, facts: ModelFacts | None, catalog: Catalog, *, has_token: Callable[[], bool]
) -> list[Finding]:
    """The notices of a model file, at the key that names the weights.

    None about code that the file trusts, nor about access where there is a token, which is asked for only then.
    """
    engine = model.config.engine_config

    def settled(kind: str) -> bool:
        if kind == "code":
            return bool(engine.engine_kwargs.get("trust_remote_code"))
        return kind == "gated" and has_token()

    return [
        model.document.finding(_named(model), text, Severity.NOTICE)
        for kind, text in use_notices(catalog.model(engine.weights_id), facts)
        if not settled(kind)
    ]


def licence_findings(stack: LoadedStack, models: Iterable[LoadedModel], catalog: Catalog) -> list[Finding]:
    """Models whose licence the stack's `licence` forbids: errors at the key that names the weights."""
    rules, found = stack.config.licence, []
    for model in models:
        row = catalog.model(model.config.engine_config.weights_id)
        licence = row.licence if row is not None else ""
        word = next((one for one in rules.forbid if one.lower() in licence.lower()), None) if licence else None
        if word is not None:
            reason = f"its licence is {licence!r}, and stack {stack.name} forbids {word!r}"
        elif not licence and rules.forbid_unknown:
            reason = f"nobody knows its licence here, and stack {stack.name} forbids that"
        else:
            continue
        key = "forbidUnknown" if word is None else "forbid"
        fix = f"serve another model, or change modelfleet:licence.{key} in {stack.document.file}"
        name = model.config.engine_config.weights_id
        found.append(model.document.finding(_named(model), f"found {name}; {reason}; {fix}"))
    return found


def token_findings(stack: LoadedStack, models: Iterable[LoadedModel], catalog: Catalog) -> list[Finding]:
    """Warns of gated weights without a token: a mirror Job would fail. On this machine the Hub's own login counts."""
    if stack.config.target.on_this_machine or "huggingFaceToken" in stack.secrets:
        return []
    gated = []
    for model in models:
        weights = model.config.engine_config.weights_id
        row = catalog.model(weights)
        if row is not None and row.gated and mirror_plan(stack, model.config).source == weights:
            gated.append(weights)
    if not gated:
        return []
    message = (
        f"is not set, but the Hub asks for access to {', '.join(gated)}; run `pulumi config set --secret "
        "modelfleet:huggingFaceToken` with one of somebody who accepted the licence, unless the mirror has the "
        "weights already or the cluster has the Secret"
    )
    return [stack.finding(("huggingFaceToken",), message, Severity.WARNING)]


def _named(model: LoadedModel) -> KeyPath:
    """The key that says which weights."""
    return ("engine_config", "hf_model_id" if model.config.engine_config.hf_model_id else "model_id")
