"""Reads `stacks/Pulumi.<env>.yaml`: the typed configuration, and which secrets are set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelfleet.infra.stack.schema import SECRET_KEYS, StackConfig
from modelfleet.serving.config.document import TWICE, Document, KeyPath, dotted, read_document
from modelfleet.serving.config.errors import Finding, InputErrors, Severity, errors_in
from modelfleet.serving.config.validation import validate

NAMESPACE = "modelfleet:"

Sections = Mapping[str, Mapping[str, Any]]
"""Keys by the section of a stack file that they are in, such as `network`."""


@dataclass(frozen=True)
class LoadedStack:
    """A valid stack file. `secrets` names the secret keys that are set; their values stay with Pulumi.

    `key_names` are the API keys that have a secret; None where `apiKeys` is encrypted in one piece, names included.
    """

    name: str
    config: StackConfig
    region: str | None
    document: Document
    secrets: frozenset[str]
    notices: tuple[Finding, ...] = ()
    #: `aws:profile`, the AWS profile of the run.
    profile: str | None = None
    key_names: frozenset[str] | None = frozenset()

    def finding(self, path: KeyPath, message: str, severity: Severity = Severity.ERROR) -> Finding:
        """A finding at a key of the stack file, e.g. `("pools", 0, "accelerator")`."""
        inside: KeyPath = ("config", f"{NAMESPACE}{path[0]}", *path[1:]) if path else ("config",)
        shown = dotted((f"{NAMESPACE}{path[0]}", *path[1:])) if path else ""
        return Finding(self.document.file, self.document.line(inside), shown, message, severity)


def stack_file(root: Path, name: str) -> Path:
    """Path of the stack's file."""
    return root / "stacks" / f"Pulumi.{name}.yaml"


def load_stack(root: Path, name: str, sections: Sections = MappingProxyType({})) -> LoadedStack:
    """Read and validate a stack file under `root`; keys in `sections` replace its own.

    Raises `InputErrors` with every fault.
    """
    path = stack_file(root, name)
    if not path.is_file():
        known = sorted(p.name.split(".")[1] for p in (root / "stacks").glob("Pulumi.*.yaml"))
        raise InputErrors(
            [Finding(f"stacks/{path.name}", 0, "", f"no such stack; stacks/ has {', '.join(known) or 'none'}")]
        )
    return stack_of(read_document(path, f"stacks/{path.name}"), name, sections)


def stack_of(document: Document, name: str, sections: Sections = MappingProxyType({})) -> LoadedStack:
    """The stack in a document that looks like a stack file; keys in `sections` replace its own.

    Raises `InputErrors` with every fault.
    """
    settings = _with_sections(_settings(document), sections)
    ours = {key.removeprefix(NAMESPACE): value for key, value in settings.items() if key.startswith(NAMESPACE)}
    key_names = _names_in(ours.get("apiKeys"))
    # Pulumi leaves `{}` where the last secret of a mapping was removed.
    secrets = frozenset(key for key in SECRET_KEYS if ours.pop(key, None) not in (None, {}))
    moved = Document(document.file, document.data, {_inner(p): n for p, n in document.lines.items()}, document.findings)
    result = validate(StackConfig, moved, ours)
    findings = [_in_one_team(finding) for finding in document.findings] + (result if isinstance(result, list) else [])
    findings += _plain_secrets(document, settings)
    if isinstance(result, list) or errors_in(findings):
        raise InputErrors([_outer(f) for f in errors_in(findings)])
    region, profile = (str(settings[key]) if settings.get(key) else None for key in ("aws:region", "aws:profile"))
    return LoadedStack(name, result, region, document, secrets, tuple(findings), profile, key_names)


def _names_in(keys: Any) -> frozenset[str] | None:
    """The names of keys that Pulumi encrypted one by one, as `pulumi config set --secret --path` does."""
    if not isinstance(keys, dict):
        return frozenset() if keys is None else None
    return None if set(keys) == {"secure"} and isinstance(keys["secure"], str) else frozenset(map(str, keys))


def _settings(document: Document) -> dict[str, Any]:
    data = document.data if isinstance(document.data, dict) else {}
    config = data.get("config")
    if not isinstance(config, dict):
        message = "has no `config:` mapping; see stacks/Pulumi.local.yaml for an example"
        raise InputErrors([Finding(document.file, document.line(()), "", message)])
    return config


def _with_sections(settings: Mapping[str, Any], sections: Sections) -> dict[str, Any]:
    merged = dict(settings)
    for section, keys in sections.items():
        own = merged.get(key := f"{NAMESPACE}{section}") or {}
        # Anything but a mapping is a fault of the file, which validation reports.
        merged[key] = {**own, **keys} if isinstance(own, Mapping) else own
    return merged


def _inner(path: KeyPath) -> KeyPath:
    """`("config", "modelfleet:pools", 0)` → `("pools", 0)`, so that validation finds its lines."""
    if len(path) >= 2 and path[0] == "config" and str(path[1]).startswith(NAMESPACE):
        return (str(path[1]).removeprefix(NAMESPACE), *path[2:])
    return () if path in ((), ("config",)) else ("", *path)


def _outer(finding: Finding) -> Finding:
    """The finding with its key as in the file, `modelfleet:` included."""
    if not finding.path or ":" in finding.path:
        return finding
    return Finding(finding.file, finding.line, f"{NAMESPACE}{finding.path}", finding.message, finding.severity)


def _in_one_team(finding: Finding) -> Finding:
    """Elsewhere a key that is there twice is a warning. An API key would silently have the limits of its last entry."""
    if not (finding.path.startswith(f"config.{NAMESPACE}keys.") and finding.message.startswith(TWICE)):
        return finding
    message = f"{finding.message}; an API key has one entry and one team: keep one of them"
    return Finding(finding.file, finding.line, finding.path.removeprefix("config."), message)


def _plain_secrets(document: Document, settings: dict[str, Any]) -> list[Finding]:
    """Refuses a secret in plain text: it would be in git."""
    return [
        Finding(
            document.file,
            document.line(("config", f"{NAMESPACE}{key}")),
            f"{NAMESPACE}{key}",
            f"is in plain text; run `pulumi config set --secret {NAMESPACE}{key}`",
        )
        for key in SECRET_KEYS
        if (value := settings.get(f"{NAMESPACE}{key}")) not in (None, {}) and not _is_secure(value)
    ]


def _is_secure(value: Any) -> bool:
    """Pulumi writes `secure:` at the leaf, or inside a list or an object set with --path."""
    if isinstance(value, dict):
        return "secure" in value or (bool(value) and all(_is_secure(v) for v in value.values()))
    return isinstance(value, list) and bool(value) and all(_is_secure(item) for item in value)
