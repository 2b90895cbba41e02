"""Draws docs/dashboard-*.png: a stack's dashboards, with what a Prometheus that watched it answers.

    modelfleet observability --stack local --out watch
    python -m tools.dashboards --prometheus http://127.0.0.1:8005 watch/dashboards/*.json

Panels, axes, legends, units and colours are Grafana's: its libraries @grafana/ui and @grafana/data (Apache 2.0) come
from npm, once per machine, with esbuild. No Grafana server runs: the queries go straight to Prometheus.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import requests

from modelfleet.infra.observability.scrape import INTERVAL_S
from modelfleet.serving.config.errors import Finding, InputErrors, ModelfleetError, SetupError
from tools.cache import once
from tools.paths import ROOT

PAGE: Final = Path(__file__).with_name("page.jsx")
PACKAGES: Final = Path(__file__).with_name("package.json")
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
#: Icons are files beside the page, and what fails in it is written to stderr.
HEADLESS: Final = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"),
    *("--allow-file-access-from-files", "--enable-logging=stderr"),
)
#: Of a picture, in pixels; a panel's row is 30 high, with 8 between (page.jsx).
WIDTH, ROW, TITLE = 1280, 38, 52
#: What esbuild makes of files that the libraries' styles name: letters into the page, pictures of an editor to nothing.
LOADERS: Final = ("--loader:.woff2=dataurl", "--loader:.woff=empty", "--loader:.ttf=empty")


@dataclass(frozen=True)
class Span:
    """Seconds since 1970 between which to draw, and seconds between two points."""

    begin: float
    end: float

    @property
    def step(self) -> int:
        """As Grafana chooses it: a point per pixel of half the width, and none between two scrapes."""
        return max(INTERVAL_S, math.ceil((self.end - self.begin) / (WIDTH / 2)))

    @property
    def rate_interval(self) -> int:
        """`$__rate_interval` of Grafana's Prometheus data source.

        https://grafana.com/docs/grafana/latest/datasources/prometheus/template-variables/
        """
        return max(self.step + INTERVAL_S, 4 * INTERVAL_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws every dashboard; returns the exit code, 1 where a panel shows nothing."""
    parser = argparse.ArgumentParser(prog="python -m tools.dashboards", description=__doc__, formatter_class=_Plain)
    parser.add_argument("--prometheus", required=True, metavar="URL", help="who is asked")
    parser.add_argument("--until", type=float, default=time.time(), metavar="S", help="seconds since 1970; now")
    parser.add_argument("--minutes", type=float, default=180, help="before `until`; 180, as the dashboards")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder for the pictures; docs")
    parser.add_argument("files", nargs="+", type=Path, help="dashboards that `modelfleet observability` wrote")
    chosen = parser.parse_args(arguments)
    span = Span(chosen.until - chosen.minutes * 60, chosen.until)
    try:
        found = {path.stem: read(path) for path in chosen.files}
        empty = [line for name, one in found.items() for line in draw(name, one, chosen.prometheus, span, chosen.out)]
    except ModelfleetError as error:
        print(f"dashboards: {error}", file=sys.stderr)
        return error.exit_code
    for line in empty:
        print(f"dashboards: {line} shows nothing", file=sys.stderr)
    return 1 if empty else 0


def read(path: Path) -> dict[str, Any]:
    """A dashboard's file; raises `InputErrors` where it is none."""
    try:
        dashboard: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputErrors([Finding(str(path), 0, "", f"is no dashboard: {error}")]) from None
    return dashboard


def draw(name: str, dashboard: Mapping[str, Any], prometheus: str, span: Span, folder: Path) -> list[str]:
    """Writes `folder`/dashboard-`name`.png; returns the queries that have nothing to show.

    Raises `SetupError` for a query that Prometheus refuses, or where it, npm or Chromium cannot be had.
    """
    answers = {
        panel["id"]: {target["refId"]: ask(prometheus, target["expr"], span) for target in panel["targets"]}
        for panel in dashboard["panels"]
    }
    shown = {"dashboard": dashboard, "answers": answers, "stepMs": span.step * 1000}
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    picture = folder / f"dashboard-{name}.png"
    screenshot(shown | {"from": span.begin * 1000, "to": span.end * 1000}, bottom * ROW + TITLE, picture)
    print(f"wrote {picture}, {picture.stat().st_size // 1024} KiB")
    return [
        f"{name}: {panel['title']} {target['refId']}"
        for panel in dashboard["panels"]
        for target in panel["targets"]
        if not answers[panel["id"]][target["refId"]]
    ]


def ask(prometheus: str, query: str, span: Span) -> list[Any]:
    """The series of a query over the span; a value that is no number is left out, as Grafana draws none."""
    text = query.replace("$__rate_interval", f"{span.rate_interval}s")
    sent = {"query": text, "start": str(span.begin), "end": str(span.end), "step": str(span.step)}
    try:
        answer = requests.get(f"{prometheus}/api/v1/query_range", params=sent, timeout=60).json()
    except requests.RequestException as error:
        raise SetupError(f"no Prometheus answers at {prometheus} ({type(error).__name__}); name its address") from error
    if answer["status"] != "success":
        raise SetupError(f"{prometheus} refuses {text}: {answer['error']}")
    series = [
        {**one, "values": [point for point in one["values"] if math.isfinite(float(point[1]))]}
        for one in answer["data"]["result"]
    ]
    return [one for one in series if one["values"]]


def screenshot(shown: Mapping[str, Any], height: int, picture: Path) -> None:
    """Writes what Chromium shows of the page with `shown`; raises `SetupError` where it or the page fails."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        raise SetupError("no Chromium is on PATH; install it (`apt-get install chromium`)")
    built = bundle()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        data = json.dumps(shown).replace("<", "\\u003c")
        page.write_text(
            f'<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="{(built / "page.css").as_uri()}">'
            f'<div id="root"></div><script>window.__grafana_public_path__ = "{built.as_uri()}/public/"; '
            f'window.shown = {data}</script><script src="{(built / "page.js").as_uri()}"></script>'
        )
        sized = [f"--user-data-dir={folder}/me", f"--window-size={WIDTH},{height}"]
        drawn = Path(folder) / picture.name
        said = _run([browser, *HEADLESS, *sized, f"--screenshot={drawn}", page.as_uri()], Path(folder))
        if fault := next((line for line in said.splitlines() if "CONSOLE" in line and "Error" in line), None):
            raise SetupError(f"the page of {picture.name} failed: {fault}")
        picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn, picture)


def bundle() -> Path:
    """The folder with page.js, page.css and public/ (icons), made once per machine for each version of the page."""
    made_of = PAGE.read_bytes() + PACKAGES.read_bytes()
    return once(f"dashboards-{hashlib.sha256(made_of).hexdigest()[:12]}", _build)


def _build(folder: Path) -> None:
    packages = once(f"grafana-ui-{hashlib.sha256(PACKAGES.read_bytes()).hexdigest()[:12]}", _install)
    with tempfile.TemporaryDirectory() as work:
        shutil.copy(PAGE, work)
        (Path(work) / "node_modules").symlink_to(packages / "node_modules")
        how = ["--bundle", "--minify", "--jsx=automatic", '--define:process.env.NODE_ENV="production"', *LOADERS]
        program = str(packages / "node_modules/.bin/esbuild")
        _run([program, PAGE.name, "--log-level=error", *how, f"--outfile={folder / 'page.js'}"], Path(work))
    shutil.copytree(packages / "node_modules/@grafana/ui/dist/public", folder / "public" / "build")


def _install(folder: Path) -> None:
    shutil.copy(PACKAGES, folder)
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"]
    _run(["npm", "install", *quiet], folder)


def _run(command: list[str], folder: Path) -> str:
    """What it wrote to stderr."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise SetupError(f"{command[0]} is not on PATH; install it") from None
    if done.returncode:
        raise SetupError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stderr


class _Plain(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    sys.exit(main())
