"""What the doctor looks at: a stack's files as far as they can be read, and where each key is in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from modelfleet.infra.names import local_folder
from modelfleet.infra.planning.plan import Plan
from modelfleet.infra.reading.workspace import Workspace, plan_workspace, read_workspace
from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding, InputErrors
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.validation import near

#: Begins a rule's key when it is one of the stack file, not of the model file.
STACK_KEY = "stack:"


@dataclass(frozen=True)
class Subject:
    """A stack. Where its files are wrong, `findings` say how, and `plan` is that of its valid models, or None."""

    root: Path
    stack: LoadedStack
    plan: Plan | None
    models: tuple[LoadedModel, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def namespace(self) -> str:
        """Where the stack is in its cluster."""
        return self.stack.config.kubernetes.namespace_of(self.stack.name)

    @property
    def mirror_namespace(self) -> str:
        """Where its mirror Jobs are."""
        return self.stack.config.kubernetes.mirror_namespace_of(self.stack.name)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Where anything of the stack is."""
        return tuple(dict.fromkeys((self.namespace, self.mirror_namespace)))

    @property
    def folder(self) -> Path:
        """Where a local stack keeps its logs and files."""
        return local_folder(self.root, self.stack.name)

    def model_id(self, slug: str) -> str:
        """The public name of a model; the slug itself for one that has no valid file any more."""
        return next((one.config.model_id for one in self.models if one.config.slug == slug), slug)

    def in_pool(self, pool: str) -> tuple[str, ...]:
        """The slugs of a pool's models; none, which stands for all, when there is no plan."""
        return tuple(one.slug for one in self.plan.models if one.pool == pool) if self.plan else ()

    def place(self, key: str, slugs: tuple[str, ...]) -> tuple[str, int, str]:
        """File, line and key of a rule's `key`: in the stack file, or in the first model's.

        Of `a or b` it is the one that the file has, and a key that is missing is at the section that lacks it.
        """
        if key.startswith(STACK_KEY):
            path = key.removeprefix(STACK_KEY)
            found = self.stack.finding(tuple(path.split(".")), "")
            return found.file, found.line, found.path
        for model in self.models:
            if model.config.slug in slugs:
                paths = key.split(" or ")
                path = next((one for one in paths if tuple(one.split(".")) in model.document.lines), paths[0])
                return model.file, model.document.line(tuple(path.split("."))), path
        return "", 0, ""


def open_subject(root: Path, name: str) -> Subject:
    """Read a stack's files; raises `InputErrors` only when its own file cannot be read."""
    workspace = read_workspace(root, name)
    try:
        plan = plan_workspace(workspace, root)
    except InputErrors as refused:
        return Subject(root, workspace.stack, _of_the_valid(workspace, root), workspace.models, refused.findings)
    return Subject(root, workspace.stack, plan, workspace.models)


def _of_the_valid(workspace: Workspace, root: Path) -> Plan | None:
    """The plan without the files at fault, so that one of them does not hide the cluster; None where none is left."""
    try:
        return plan_workspace(replace(workspace, findings=()), root)
    except InputErrors:
        return None


def slug_of(subject: Subject, word: str) -> str:
    """The slug of the model that the user names by its id, slug or file; raises `InputErrors` with a suggestion."""
    for model in subject.models:
        if word in (model.config.model_id, model.config.slug, model.file, Path(model.file).stem):
            return model.config.slug
    known = [model.config.model_id for model in subject.models]
    raise InputErrors(
        [Finding("MODEL", 0, "", f"stack {subject.stack.name} has no model {word!r}; {near(word, known)}")]
    )
