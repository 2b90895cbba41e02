"""Any text that starts vLLM into drafts of model files: finds out what the text is."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

from modelfleet.infra.interchange.compose import read_compose
from modelfleet.infra.interchange.containers import downloads_in, workload_of
from modelfleet.infra.interchange.dockerfile import is_dockerfile, read_dockerfile
from modelfleet.infra.interchange.draft import Draft, draft_of
from modelfleet.infra.interchange.export import patch_in
from modelfleet.infra.interchange.helm import read_anything, read_modelservice, read_production_stack, read_recipe
from modelfleet.infra.interchange.kserve import KINDS, read_kserve
from modelfleet.infra.interchange.kubernetes import read_object
from modelfleet.infra.interchange.ray_serve_llm import paths_in, read_ray_serve
from modelfleet.infra.interchange.ray_serve_python import read_python
from modelfleet.infra.interchange.servers import mentions_vllm, servers_in
from modelfleet.infra.interchange.shell import Command, read_script
from modelfleet.infra.interchange.tree import items, text, walk
from modelfleet.infra.interchange.workload import Note, Workload
from modelfleet.serving.config.document import Document, parse_documents
from modelfleet.serving.config.errors import Finding, InputErrors
from modelfleet.serving.config.load import model_of
from modelfleet.serving.config.rayllm.fix import fixed_text

MAX_BYTES = 1024 * 1024
_TEMPLATE = re.compile(r"\{\{-?\s*[^}]*\}\}|<no value>")
_MAX_LINE = 20_000
#: How YAML begins: a key, a document's mark, or JSON. `vllm serve a '{"b": 1}'` would be a mapping for its parser, too.
_YAML_LINE = re.compile(r"""\s*(["']?[\w./-]+["']?\s*:(\s|$)|---|%YAML|[{\[]|\{\{)""")

Loader = Callable[[str], str | None]
"""Another file's text by the path that a file names, relative to that file; None where it is not there."""


def read_drafts(
    content: str, name: str, *, accelerator: str | None = None, load: Loader = lambda path: None
) -> list[Draft]:
    """The model files that a text becomes.

    Raises `InputErrors` with one finding for a text that serves nothing with vLLM, or that nobody can read.
    """
    _refuse_unreadable(content, name)
    documents = _documents(content, name)
    models = [_model_file(one, content) for one in documents if _is_model_file(one)]
    if models:
        return models
    workloads = list(_of_documents(documents, load) if documents else _of_text(content, name))
    for workload in workloads:
        _refuse_template(workload, name)
    if len(workloads) == 1 and (patch := patch_in(content)):
        workloads = [replace(workloads[0], patch=patch)]
    # An image's own entry point, without a model or an option, is no model to serve.
    telling = [
        workload for workload in workloads if workload.arguments.keys() - {"generation_config"} or workload.notes
    ]
    if not telling:
        raise InputErrors([Finding(name, 0, "", _nothing(content, bare=bool(workloads)))])
    return distinct([draft_of(workload, accelerator) for workload in telling])


def distinct(drafts: list[Draft]) -> list[Draft]:
    """The drafts, with a note where an earlier one has the same name for clients."""
    seen: dict[str, str] = {}
    result: list[Draft] = []
    for draft in drafts:
        first = seen.setdefault(draft.name, draft.where)
        note = Note(f"the same model_id as {first}", "a stack has each once: keep one of the files, or rename")
        again = len(seen) <= len(result)
        result.append(replace(draft, notes=(*draft.notes, note)) if again else draft)
    return result


def _refuse_unreadable(content: str, name: str) -> None:
    for number, line in enumerate(content.split("\n"), 1):
        if len(line) > _MAX_LINE:
            raise InputErrors(
                [Finding(name, number, "", f"has {len(line)} characters in one line; at most {_MAX_LINE} are read")]
            )


def _nothing(content: str, *, bare: bool) -> str:
    known = "a vllm serve command, a Dockerfile, compose, Kubernetes, KServe, Helm values, ray.serve.llm or RayLLM file"
    allowed = f"{known} is expected"
    if _TEMPLATE.search(content):
        return f"is a template; render it first (`helm template`, `kustomize build`): {allowed}"
    if bare:
        return f"starts vLLM without a model or an option; {allowed}"
    return f"serves nothing with vLLM; {allowed}"


def _documents(content: str, name: str) -> list[Document]:
    """The mappings of a YAML stream; none for a script, a Dockerfile or prose."""
    first = next((line for line in content.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    if is_dockerfile(content) or not _YAML_LINE.match(first):
        return []
    try:
        found = parse_documents(content, name)
    except InputErrors as error:
        if _TEMPLATE.search(content):
            line = error.findings[0].line
            raise InputErrors(
                [Finding(name, line, "", "is a template; render it first, for example with `helm template`")]
            ) from None
        raise
    return [one for one in _flat(found) if isinstance(one.data, dict)]


def _flat(documents: Iterable[Document]) -> Iterator[Document]:
    """A `List` of objects as its items."""
    for one in documents:
        if text(one.data, "kind") == "List":
            for index, item in enumerate(items(one.data, "items")):
                lines = {path[2:]: line for path, line in one.lines.items() if path[:2] == ("items", index)}
                yield Document(one.file, item, lines)
        else:
            yield one


def _is_model_file(document: Document) -> bool:
    return "engine_config" in document.data or ("model_config" in document.data and "scaling_config" in document.data)


def _model_file(document: Document, content: str) -> Draft:
    """A file of RayLLM's format: old names are rewritten, and everything else stays."""
    model, _ = model_of(document)
    data = {"engine_config": {"model_id": model.config.model_id}} if model else document.data
    return Draft(document.file, data, text=fixed_text(content, document.file)[0])


def _of_documents(documents: list[Document], load: Loader) -> Iterator[Workload]:
    for document in documents:
        found = list(_of_document(document, documents))
        for path in paths_in(document):
            other = load(path)
            if other is not None:
                found += [workload for one in parse_documents(other, path) for workload in read_ray_serve(one)]
        yield from found


def _of_document(document: Document, documents: list[Document]) -> Iterator[Workload]:
    data, kind = document.data, text(document.data, "kind")
    if kind in KINDS:
        yield from read_kserve(document, documents)
        return
    if "services" in data and isinstance(data["services"], dict):
        yield from read_compose(document)
        return
    if "servingEngineSpec" in data:
        yield from read_production_stack(document)
        return
    if "modelArtifacts" in data:
        yield from read_modelservice(document)
        return
    if isinstance(data.get("model"), dict) and "base_args" in data["model"]:
        yield from read_recipe(document)
        return
    found = list(read_ray_serve(document))
    if kind and "apiVersion" in data:
        found += read_object(document, documents)
    found += _inside(document) if not found else []
    yield from found or (read_anything(document) if not kind else ())


def _inside(document: Document) -> Iterator[Workload]:
    """Whole files as text inside an object: a RayService's serveConfigV2, a ConfigMap's data."""
    for path, value in walk(document.data):
        if isinstance(value, str) and "\n" in value and (mentions_vllm(value) or "model_loading_config" in value):
            inner = f"{document.file}:{document.line(path)}"
            try:
                documents = _documents(value, inner)
                yield from _of_documents(documents, lambda path: None) if documents else _of_text(value, inner)
            except InputErrors:
                continue  # text in an object need not be a file at all


def _of_text(content: str, name: str) -> Iterator[Workload]:
    """A Dockerfile, or anything that a shell could read: scripts, READMEs' commands, systemd units."""
    if is_dockerfile(content):
        yield from read_dockerfile(content, name)
        return
    if "LLMConfig" in content:
        with suppress(SyntaxError, RecursionError, MemoryError, ValueError):  # too deep, or a NUL, is no program
            yield from read_python(ast.parse(content), name)
            return
    earlier = downloads_in(content, {})
    for found in read_script(content):
        if isinstance(found, Command):
            for server in servers_in(found.words, found.environment):
                where = f"{name}:{found.line}"
                one = workload_of(server, where, downloads=earlier)
                yield replace(one, environment=_own(server.environment))
        elif documents := _maybe(found.text, name):
            yield from _of_documents(documents, lambda path: None)


def _maybe(content: str, name: str) -> list[Document]:
    try:
        return _documents(content, name)
    except InputErrors:
        return []


def _own(environment: object) -> dict[str, str]:
    """Of a script's variables, those that the engine could read."""
    found = environment if isinstance(environment, dict) else {}
    return {
        key: value
        for key, value in found.items()
        if re.match(r"(VLLM|NCCL|TORCH|PYTORCH|OMP|FLASHINFER)_|HF_TOKEN$", key)
    }


def _refuse_template(workload: Workload, name: str) -> None:
    texts = [(key, value) for key, value in workload.arguments.items() if key != "chat_template"]
    for key, value in (*texts, *((note.what, note.what) for note in workload.notes)):
        if isinstance(value, str) and (match := _TEMPLATE.search(value)):
            raise InputErrors(
                [
                    Finding(
                        name,
                        0,
                        key,
                        f"found {match[0][:60]}, a template; render it first, for example with `helm template`",
                    )
                ]
            )
