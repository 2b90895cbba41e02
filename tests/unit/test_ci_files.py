"""The CI files of `modelfleet init`: what they may do, and their own commands in a repository that `init` made.

The commands run as a runner runs them; only `pip install` and the service that keeps the comments are played.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from modelfleet.cli.init import CI_FILES, Ci, Fleet, fleet_files
from modelfleet.cli.main import app
from modelfleet.cli.release import release_of

ROOT = Path(__file__).parents[2]
(WHEEL,) = (ROOT / "tests" / "engine" / "fixtures").glob("modelfleet-*.whl")
TOKEN = "a-token-of-a-test"
MARK = "<!-- modelfleet plan -->"


class Comments(BaseHTTPRequestHandler):
    """The comments of one request, as GitHub and GitLab keep them; someone else's has our mark too."""

    server: Service

    def answer(self, code: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refused(self) -> bool:
        if TOKEN in (
            self.headers.get("PRIVATE-TOKEN"),
            (self.headers.get("Authorization") or "").removeprefix("Bearer "),
        ):
            return False
        self.answer(401, {})
        return True

    def do_GET(self) -> None:
        if not self.refused():
            path = self.path.partition("?")[0]
            self.answer(
                200, {"id": 7} if path.endswith("/user") else self.server.comments if path == self.server.path else None
            )

    def do_POST(self) -> None:
        if not self.refused():
            assert self.path == self.server.path
            self.answer(201, self.server.add(self.body(), "github-actions[bot]", 7))

    def edit(self) -> None:
        """Only one's own, as both do."""
        if self.refused():
            return
        (one,) = (
            one
            for one in self.server.comments
            if one["url"].endswith(self.path) or self.path == f"{self.server.path}/{one['id']}"
        )
        if one["author"]["id"] != 7:
            self.answer(403, {})
            return
        one["body"] = self.body()
        self.answer(200, one)

    do_PATCH = do_PUT = edit

    def body(self) -> str:
        return str(json.loads(self.rfile.read(int(self.headers["content-length"])))["body"])

    def log_message(self, *words: object) -> None:
        """Nothing."""


class Service(ThreadingHTTPServer):
    """Where comments are."""

    def __init__(self, path: str) -> None:
        super().__init__(("127.0.0.1", 0), Comments)
        self.url, self.path = f"http://127.0.0.1:{self.server_address[1]}", path
        self.comments: list[dict[str, Any]] = []
        self.add(f"{MARK}\nsomebody's own words", "somebody", 3)

    def add(self, body: str, login: str, author: int) -> dict[str, Any]:
        number = len(self.comments) + 1
        url = f"{self.url}/comments/{number}"
        made = {
            "id": number,
            "url": url,
            "html_url": url,
            "body": body,
            "user": {"login": login},
            "author": {"id": author},
        }
        self.comments.append(made)
        return made


@contextmanager
def service(path: str) -> Iterator[Service]:
    with Service(path) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        try:
            yield served
        finally:
            served.shutdown()
            thread.join()


class Runner:
    """A repository with a branch that lets stack `prod` grow, and a machine that runs a job's commands."""

    def __init__(self, folder: Path, ci: Ci, stacks: str) -> None:
        self.root, self.bin = folder / "fleet", folder / "bin"
        words = ["init", str(self.root), "--stacks", stacks, "--ci", ci, "--wheel", str(WHEEL)]
        made = CliRunner().invoke(app, words)
        assert made.exit_code == 0, made.output
        self.ci: dict[Any, Any] = yaml.safe_load((self.root / CI_FILES[ci]).read_text())
        self.bin.mkdir()
        self._command("modelfleet", f'exec {shlex.quote(sys.executable)} -m modelfleet.cli.main "$@"')
        self._command("python", f'exec {shlex.quote(sys.executable)} "$@"')
        self._command("pip", 'test "$*" = "install --no-deps -r requirements.txt" && test -s requirements.txt')
        self.environ = {
            "PATH": os.pathsep.join([str(self.bin), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "HF_HUB_OFFLINE": "1",
            **{f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        self.git("init", "-q", "-b", "main")
        self.git("add", ".")
        self.git("commit", "-q", "-m", "a fleet")
        self.git("update-ref", "refs/remotes/origin/main", "HEAD")
        self.git("switch", "-q", "-c", "grow")
        stack = self.root / "stacks" / "Pulumi.prod.yaml"
        stack.write_text(stack.read_text().replace("maxNodes: 1", "maxNodes: 2"))
        self.git("commit", "-q", "-a", "-m", "prod grows")

    def _command(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.root, env=self.environ, check=True)

    def run(self, *command: str, **environ: str) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environ | environ, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def wants_a_growing_prod(plan: str) -> None:
    assert re.search(r"^### `prod`: at most [\d.]+ → [\d.]+ USD/h", plan, re.MULTILINE), plan
    assert re.search(r"^\| ~ \| pool \| `l4` \| .*maxNodes 1 → 2", plan, re.MULTILINE), plan


def test_the_github_file_checks_plans_and_keeps_one_comment(tmp_path: Path) -> None:
    runner = Runner(tmp_path, "github", "dev,prod")
    check, comment = runner.ci["jobs"]["check"], runner.ci["jobs"]["comment"]
    output, page = tmp_path / "output", tmp_path / "summary"
    for step in check["steps"]:
        if "run" in step:
            files = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(page)}
            runner.run("bash", "-e", "-c", step["run"], GITHUB_BASE_REF="main", **files)
    name, end = output.read_text().split("\n")[0].split("<<")
    text, rest = output.read_text().removeprefix(f"{name}<<{end}\n").split(f"\n{end}\n")
    assert rest == "" and text.rstrip() == page.read_text().rstrip()
    wants_a_growing_prod(text)
    assert "### `dev`" in text and "Nothing changes." in text

    (step,) = comment["steps"]
    assert step["shell"] == "python"
    with service("/repos/o/r/issues/5/comments") as served:
        values = {
            "github.token": TOKEN,
            "github.api_url": served.url,
            "github.repository": "o/r",
            "github.event.pull_request.number": "5",
            "github.event.pull_request.head.sha": "c0ffee",
            f"needs.check.outputs.{name}": text,
        }
        assert check["outputs"][name] == f"${{{{ steps.plan.outputs.{name} }}}}"
        for sha in ("c0ffee", "decaf"):
            values["github.event.pull_request.head.sha"] = sha
            given = {key: filled(value, values) for key, value in step["env"].items()}
            runner.run("python", "-c", step["run"], **given)
        others, ours = served.comments
    assert others["body"].endswith("own words"), "with our mark, and not ours"
    assert ours["body"].startswith(MARK) and ours["body"].endswith("Commit decaf")
    wants_a_growing_prod(ours["body"])


def test_a_plan_that_is_cut_within_a_letter_is_told_all_the_same(tmp_path: Path) -> None:
    """iconv calls the half letter a failure, and the job ended there without a comment."""
    text = fleet_files(Fleet("f", ("prod",), "1"), release_of(WHEEL), ci="github", local=False)[CI_FILES["github"]]
    (step,) = [one for one in yaml.safe_load(text)["jobs"]["check"]["steps"] if one.get("id") == "plan"]
    (tmp_path / "plan.md").write_text("a" + "→" * 30_000, encoding="utf-8")
    output, after = tmp_path / "output", step["run"].partition("} > plan.md\n")[2]
    environ = {**os.environ, "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    subprocess.run(["bash", "-e", "-c", after], cwd=tmp_path, env=environ, check=True, timeout=60)
    first, plan, *_, last = output.read_text(encoding="utf-8").splitlines()
    assert first == f"plan<<{last}" and plan == "a" + "→" * 19_999


def filled(text: str, values: dict[str, str]) -> str:
    """With the runner's expressions replaced; one that this test does not know is an error."""
    return re.sub(r"\$\{\{ ([\w.]+) \}\}", lambda found: values[found[1]], text)


def test_the_github_file_gives_each_job_the_least() -> None:
    text = fleet_files(Fleet("f", ("prod",), "1"), release_of(WHEEL), ci="github", local=False)[CI_FILES["github"]]
    flow = yaml.safe_load(text)
    assert flow[True] == ["pull_request"], "not pull_request_target, which has the base's secrets"
    assert flow["permissions"] == {}
    rights = {name: job["permissions"] for name, job in flow["jobs"].items()}
    assert rights == {"check": {"contents": "read"}, "comment": {"pull-requests": "write"}}
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    assert not [step for step in steps if "${{" in step.get("run", "")], "an expression in a script is an injection"
    used = re.findall(r"uses: (\S+)(.*)", text)
    assert used and all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", name) for name, _ in used)
    assert all(re.fullmatch(r"  # v\d+\.\d+\.\d+", version) for _, version in used), "who reads it needs the version"
    assert all("run" in step for step in flow["jobs"]["comment"]["steps"]), "what may write runs nobody else's code"
    assert steps[0]["with"] == {"fetch-depth": 0, "persist-credentials": False}


def test_the_gitlab_file_checks_plans_and_keeps_one_comment(tmp_path: Path) -> None:
    runner = Runner(tmp_path, "gitlab", "prod")
    check, comment = runner.ci["check"], runner.ci["comment"]
    assert check["artifacts"]["paths"] == ["plan.md"] and comment["needs"] == ["check"]
    requests, token = '$CI_PIPELINE_SOURCE == "merge_request_event"', "$MODELFLEET_COMMENT_TOKEN"
    assert check["rules"] == [{"if": requests}] and comment["rules"] == [{"if": f"{requests} && {token}"}]
    for line in check["script"]:
        runner.run("bash", "-e", "-o", "pipefail", "-c", line, CI_MERGE_REQUEST_DIFF_BASE_SHA="main")
    wants_a_growing_prod((runner.root / "plan.md").read_text())
    with service("/projects/9/merge_requests/5/notes") as served:
        given = {"CI_API_V4_URL": served.url, "CI_MERGE_REQUEST_PROJECT_ID": "9", "CI_MERGE_REQUEST_IID": "5"}
        for sha in ("c0ffee", "decaf"):
            for line in comment["script"]:
                runner.run("bash", "-e", "-c", line, CI_COMMIT_SHA=sha, MODELFLEET_COMMENT_TOKEN=TOKEN, **given)
        others, ours = served.comments
    assert others["body"].endswith("own words"), "with our mark, and not ours"
    assert ours["body"].startswith(MARK) and ours["body"].endswith("Commit decaf")
    wants_a_growing_prod(ours["body"])


@pytest.mark.parametrize("ci", ["github", "gitlab"])
def test_a_fleet_without_a_stack_in_the_cloud_plans_its_local_one(ci: Ci) -> None:
    """Otherwise there would be a comment without words."""
    text = fleet_files(Fleet("f", (), "1"), release_of(WHEEL), ci=ci, local=True)[CI_FILES[ci]]
    assert "modelfleet plan --stack local --diff" in text
