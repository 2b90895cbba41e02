"""From evidence and rules to causes, each with the symptoms that it explains. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from modelfleet.doctor.evidence import ORDER, PAST, Evidence, Layer
from modelfleet.doctor.redact import redacted
from modelfleet.doctor.rules import Placed, filled
from modelfleet.serving.config.errors import one_line

#: Kinds of objects of which one fault makes many alike.
MANY = ("pod", "event")
#: Kinds that in their own layer tell of one object alone: that AWS had no machine a while ago empties no bucket.
OF_ONE = ("activity",)
#: Kinds that a pod without a node shows as; nothing else asks AWS for a machine.
WAITING = ("pod", "lacking")
#: Kinds of what is no fault by itself, and may be why everything else is not there yet.
AT_WORK = ("lock",)
#: Longest piece of evidence that is shown.
LONGEST = 600


class Names(Protocol):
    """What a diagnosis asks of the stack: `modelfleet.doctor.subject.Subject`, or a test's."""

    @property
    def namespace(self) -> str:
        """Where the stack is in its cluster."""

    @property
    def mirror_namespace(self) -> str:
        """Where its mirror Jobs are."""

    def model_id(self, slug: str) -> str:
        """The public name of a model."""

    def place(self, key: str, slugs: tuple[str, ...]) -> tuple[str, int, str]:
        """File, line and full path of a key."""


@dataclass(frozen=True)
class Cause:
    """What is wrong, what shows it, what to do and what happens then. `file` is empty where no file is at fault."""

    rule: str
    layer: Layer
    sentence: str
    fix: str
    then: str
    models: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    file: str = ""
    line: int = 0
    key: str = ""
    symptom: bool = False
    explains: tuple[Cause, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The cause for `--json`."""
        return {
            "rule": self.rule,
            "layer": self.layer.value,
            "sentence": self.sentence,
            "fix": self.fix,
            "then": self.then,
            "models": list(self.models),
            "file": self.file or None,
            "line": self.line or None,
            "key": self.key or None,
            "evidence": [as_json(one) for one in self.evidence],
            "explains": [one.as_json() for one in self.explains],
        }


def as_json(evidence: Evidence) -> dict[str, Any]:
    """One fact for `--json`, redacted."""
    return {
        "layer": evidence.layer.value,
        "object": redacted(evidence.object),
        "time": evidence.time or None,
        "file": evidence.file or None,
        "line": evidence.line or None,
        "text": short(evidence.text),
    }


def short(text: str) -> str:
    """Evidence on one line, redacted; redacted before it is cut, for half a token is not recognised."""
    safe = one_line(" ".join(redacted(text).split()))
    return safe if len(safe) <= LONGEST else f"{safe[: LONGEST - 1]}…"


def diagnose(
    rules: Sequence[Placed], evidence: Iterable[Evidence], names: Names, stack: str, model: str | None = None
) -> list[Cause]:
    """The causes, the first one first. With `model`, a slug, only what concerns it or the whole stack."""
    made: dict[tuple[str, ...], Cause] = {}
    for one in _asked_for(tuple(evidence)):
        if model is not None and one.models and model not in one.models:
            continue
        found = _cause(rules, one, names, stack)
        if found is None:
            continue
        # What concerns the same models by the same rule is one cause, however many objects and layers show it.
        key = (found.rule, *(found.models or (one.object,)))
        earlier = made.get(key)
        made[key] = found if earlier is None else replace(earlier, evidence=(*earlier.evidence, one))
    position = {placed.rule.id: place for place, placed in enumerate(rules)}
    now = [cause for cause in made.values() if _is_now(cause)]
    ordered = sorted(
        _present(made.values(), now), key=lambda one: (_is_needless(one, now), ORDER[one.layer], position[one.rule])
    )
    return _by_cause(ordered)


def _asked_for(evidence: Sequence[Evidence]) -> Iterator[Evidence]:
    """All but machines that AWS did not have when somebody asked, where the cluster was seen and no pod waits for one.

    They would pass for the cause of a RayService that is not ready for another reason.
    """
    kinds = {one.kind for one in evidence}
    needless = "rayservice" in kinds and kinds.isdisjoint(WAITING)
    yield from (one for one in evidence if not (needless and one.kind in OF_ONE))


def _is_now(cause: Cause) -> bool:
    return any(one.kind not in PAST for one in cause.evidence)


def _present(causes: Collection[Cause], now: Collection[Cause]) -> Iterator[Cause]:
    """What is shown by something that is so now, and of the rest what concerns the same models."""
    for cause in causes:
        if cause in now or any(_share(cause, other) for other in now):
            yield cause


def _is_needless(cause: Cause, now: Collection[Cause]) -> bool:
    """Whether a cause was, and explains nothing that is now and that no cause of now explains: it goes last.

    An hour ago AWS may have had no machine; that today's pods wait for an absent image has nothing to do with it.
    """
    if cause.symptom or _is_now(cause) or any(one.kind in AT_WORK for one in cause.evidence):
        return False
    causes = [one for one in now if not one.symptom]
    open_ones = (one for one in now if one.symptom and not any(_explains(why, one) for why in causes))
    return not any(_explains(cause, one) for one in open_ones)


def _share(one: Cause, other: Cause) -> bool:
    """Whether both concern a model; what names none concerns all."""
    return not one.models or not other.models or bool({*one.models} & {*other.models})


def _cause(rules: Sequence[Placed], evidence: Evidence, names: Names, stack: str) -> Cause | None:
    """What the first matching rule says of one fact; rules that know a cause go before those that know a symptom."""
    for placed in sorted(rules, key=lambda one: one.rule.symptom):
        rule = placed.rule
        if evidence.kind not in rule.on or (match := rule.match(evidence.text)) is None:
            continue
        values = _values(evidence, match.groupdict(), names, stack)
        own = (evidence.file, evidence.line if evidence.file else 0, "")
        file, line, key = names.place(rule.key, evidence.models) if rule.key else own
        return Cause(
            rule=rule.id,
            layer=placed.layer,
            sentence=short(filled(rule.sentence, values)),
            fix=short(filled(rule.fix, values)),
            then=short(filled(rule.then, values)),
            models=evidence.models,
            evidence=(evidence,),
            file=file,
            line=line,
            key=key,
            symptom=rule.symptom,
        )
    return None


def _values(evidence: Evidence, groups: Mapping[str, str | None], names: Names, stack: str) -> dict[str, str]:
    model = ", ".join(names.model_id(slug) for slug in evidence.models) or "the stack"
    return {
        "object": evidence.object,
        "model": model,
        "text": " ".join(evidence.text.split()).rstrip("."),
        "last": next((line.strip() for line in reversed(evidence.text.splitlines()) if line.strip()), ""),
        "stack": stack,
        "namespace": names.mirror_namespace if _copies(evidence) else names.namespace,
        "mirror_namespace": names.mirror_namespace,
        "file": evidence.file,
        **{name: " ".join((value or "").split()) for name, value in groups.items()},
    }


def _copies(evidence: Evidence) -> bool:
    """Whether a fact is about a mirror Job or a pod of one, by its name (`manifests/mirror.py`)."""
    return evidence.object.partition(" ")[2].startswith("mirror-")


def _by_cause(ordered: Sequence[Cause]) -> list[Cause]:
    """Symptoms go below what explains them: the first cause, or else the first symptom, of their models."""
    kept: list[Cause] = []
    below: dict[str, list[Cause]] = {}
    for one in sorted(ordered, key=lambda one: one.symptom):
        why = next((cause for cause in kept if _explains(cause, one)), None)
        if why is None:
            kept.append(one)
        else:
            below.setdefault(_key(why), []).append(one)
    kept.sort(key=ordered.index)
    return [replace(one, explains=tuple(below.get(_key(one), ()))) for one in kept]


def _key(cause: Cause) -> str:
    return f"{cause.rule} {cause.models} {cause.evidence[0].object}"


def _explains(cause: Cause, symptom: Cause) -> bool:
    """Nothing explains what comes before it in the order of cause, or what concerns only other models.

    A cause is explained by nothing but the same fault of another object, such as one absent image of three pods.
    """
    if not symptom.symptom:
        return cause.rule == symptom.rule and symptom.evidence[0].kind in MANY and _share(cause, symptom)
    if ORDER[cause.layer] > ORDER[symptom.layer]:
        return False
    shown = cause.evidence[0]
    if cause.layer is symptom.layer and shown.kind in OF_ONE and shown.object != symptom.evidence[0].object:
        return False
    return _share(cause, symptom)
