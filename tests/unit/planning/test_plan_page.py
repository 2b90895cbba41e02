"""The page of `modelfleet plan --html`: no network, nothing injected, and checked in a real browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from modelfleet.cli.plan_html import plan_page, segments
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import GpuMemory
from modelfleet.infra.reading.workspace import make_plan
from tests.unit.planning.builders import model, planned, pool, stack

ROOT = Path(__file__).parents[3]
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
#: Rendered in an iframe of the wanted width, so the window's minimum size does not matter.
FRAME = """<!doctype html><body style="margin:0">
<iframe id="f" srcdoc="{page}" style="width:{width}px;height:2400px;border:0"></iframe>
<script>onload = () => {{
  const page = document.getElementById("f").contentDocument;
  const box = element => element.getBoundingClientRect();
  const outside = element => !element.closest(".scroll") && box(element).right > {width} + 1;
  const filled = bar => [...bar.children].reduce((sum, part) => sum + box(part).width, 0);
  document.title = JSON.stringify([
    page.documentElement.scrollWidth,
    [...page.querySelectorAll("main *")].filter(outside).length,
    page.defaultView.getComputedStyle(page.body).backgroundColor,
    [...page.querySelectorAll(".bar")].map(bar => Math.round(filled(bar) - box(bar).width)),
  ]);
}}</script>"""


@pytest.fixture(scope="module")
def prod() -> Plan:
    """The largest example stack."""
    return make_plan(ROOT, "prod", deploying=False)


def test_the_page_needs_no_network(prod: Plan) -> None:
    page = plan_page(prod)
    assert not re.search(r"""(src|href)=|url\(|@import|<script""", page)
    assert "default-src 'none'" in page


def test_the_page_shows_each_rung_of_a_ladder_in_its_order() -> None:
    ladder = pool(instanceTypes=["g6.xlarge"], purchase=["spot", "on-demand"])
    page = " ".join(plan_page(planned([model()], stack(ladder))).split())
    rung = "<li>{}: g6.xlarge, zones all, 0.80 USD/h per node; 1 × org/model</li>".format
    assert f"{rung('spot')}{rung('on-demand')}" in page
    assert "zones all" not in plan_page(planned([model()], stack(pool(instanceTypes=["g6.xlarge"]))))


def test_the_page_shows_models_pools_and_cost(prod: Plan) -> None:
    page = plan_page(prod)
    for text in (
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "p4de.24xlarge",
        "KV cache",
        "USD per month when idle",
        "total",
    ):
        assert text in page


def test_every_number_leads_to_its_source(prod: Plan) -> None:
    """The shape of each model, the speed's factors, the nodes' sizes, the prices' table and date."""
    page = html.unescape(plan_page(prod))
    for one in prod.models:
        assert one.shape_source and f"From {one.shape_source}, by vLLM's own rules" in page, one.model_id
    assert page.count("From infra/catalog/speed-factors.csv") == sum(one.speed is not None for one in prod.models)
    assert "infra/catalog/ec2-instances.csv" in page and "infra/catalog/prices.csv" in page
    assert "catalog of 2026-07-20" in page


def test_content_of_files_is_shown_as_text_and_never_run() -> None:
    """The schema restricts names, but notices repeat whatever a file says."""
    plan = planned([model()], stack(pool(), region="<img src=x onerror=alert(1)>"))
    page = plan_page(plan)
    assert "<img" not in page
    assert "&lt;img" in page


def test_a_bar_is_the_whole_gpu() -> None:
    memory = GpuMemory(1000, 500.0, 300.0, 120.0, 80.0, 1, 1)
    assert [(s.kind, s.share) for s in segments(memory)] == [
        ("weights", 50),
        ("cache", 30),
        ("reserve", 12),
        ("free", 8),
    ]


def test_unknown_models_and_this_machine_also_have_a_page() -> None:
    assert "nothing is known about this model" in plan_page(planned([model()], stack(pool())))
    local = planned([model("org/cpu", "CPU")], stack(pool("cpu", "CPU"), target="local", region=None))
    assert "USD/h" not in plan_page(local)


def in_browser(arguments: list[str]) -> str:
    if BROWSER is None:
        pytest.skip("no chromium on PATH: `apt-get install chromium` lets this test render the page")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [375, 1440])
def test_in_chromium_nothing_overflows_and_the_scheme_is_followed(
    prod: Plan, tmp_path: Path, scheme: str, width: int
) -> None:
    """No sideways scrolling on a phone, bars that fill their width, a dark page if dark is preferred."""
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=html.escape(plan_page(prod)), width=width))
    setting = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    dumped = in_browser(
        [setting, "--window-size=1500,2500", "--virtual-time-budget=2000", "--dump-dom", frame.as_uri()]
    )
    found = re.search(r"<title>\[(\d+),(\d+),\"(rgb[^\"]+)\",(\[[^]]*\])\]</title>", html.unescape(dumped))
    assert found, dumped[-500:]
    assert int(found[1]) <= width, "the page scrolls sideways"
    assert int(found[2]) == 0, "something sticks out"
    assert found[3] == ("rgb(18, 22, 28)" if scheme == "dark" else "rgb(247, 248, 250)")
    assert set(found[4].strip("[]").split(",")) <= {"0", "-0"}, "a bar does not fill its width"


@pytest.mark.slow
def test_a_screenshot_is_not_empty(prod: Plan, tmp_path: Path) -> None:
    page, picture = tmp_path / "plan.html", tmp_path / "plan.png"
    page.write_text(plan_page(prod))
    in_browser(["--window-size=1440,1800", f"--screenshot={picture}", page.as_uri()])
    assert picture.stat().st_size > 50_000
