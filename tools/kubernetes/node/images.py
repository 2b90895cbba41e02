"""Images without a registry: `buildah` runs Dockerfiles here, and one archive carries what they give to each node.

Everything is made once per machine, into the tools' cache under a name that says all that it is made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelfleet.serving.config.errors import SetupError
from tools.cache import once
from tools.kubernetes.binaries import BINARIES
from tools.paths import tools_cache
from tools.progress import Step, say

#: Debian's suite and the packages of the base of all images that are not one program.
SUITE = "bookworm"
PACKAGES = ("ca-certificates", "curl", "iproute2", "libgomp1", "libnuma1", "procps", "python3-pip", "wget")
DEBIAN = "localhost/debian:12"
CERTIFICATES = "/etc/ssl/certs"
PAUSE = Path(__file__).parent / "pause.c"


@dataclass(frozen=True)
class Recipe:
    """A name such as `localhost/pause:1`, a Dockerfile, and the files that it copies."""

    name: str
    dockerfile: str
    made_from: tuple[str, ...] = ()
    """What the files are made from; they are the same as long as this is."""
    files: Mapping[str, Callable[[], Path]] = field(default_factory=dict, compare=False)
    """Files and folders of the build's context, which are asked for when it is built."""
    arguments: tuple[str, ...] = ()
    """More of `buildah build`."""
    volume: str | None = None
    """A folder of the image that is too large for a layer: it lies in the cache, and nodes mount it."""
    fill: Callable[[Path], None] | None = field(default=None, compare=False)
    """Puts into that folder what the image's base has there."""

    @property
    def key(self) -> str:
        """Names all that the image is made from."""
        return hashlib.sha256(
            "\0".join([self.name, self.dockerfile, *self.made_from, *self.arguments]).encode()
        ).hexdigest()


@dataclass(frozen=True)
class Archive:
    """An OCI archive and the digest of each image in it, by name."""

    path: Path
    digests: Mapping[str, str]
    mounts: tuple[tuple[str, str], ...] = ()
    """(source, target): what every container has to see, because no layer holds it."""

    def reference(self, name: str) -> str:
        """The image as production names it: its repository and its digest."""
        return _by_digest(name, self.digests[name])


def system_recipes() -> list[Recipe]:
    """The pods' own pause container, the cluster's DNS and the enforcer of its policies."""
    pause = Recipe(
        "localhost/pause:1",
        'FROM scratch\nCOPY pause /\nUSER 65535:65535\nENTRYPOINT ["/pause"]\n',
        (PAUSE.read_text(),),
        {"pause": _pause},
    )
    return [pause, *(program(f"localhost/{name}:1", name, name) for name in ("coredns", "kube-network-policies"))]


def debian() -> Recipe:
    """Debian with Python and what tests look with, from its own packages; making it needs root."""
    options = _debian_options()
    return Recipe(DEBIAN, "FROM scratch\nADD debian.tar /\n", tuple(options), {"debian.tar": _debian})


def program(name: str, binary: str, path: str, user: str = "0:0") -> Recipe:
    """An image that holds one of the built programs, which is static, at `/path`."""
    return Recipe(
        name,
        f'FROM scratch\nCOPY {path} /\nUSER {user}\nENTRYPOINT ["/{path}"]\n',
        (BINARIES[binary].module.name,),
        {path: lambda: BINARIES[binary].path},
    )


def archive(recipes: Sequence[Recipe]) -> Archive:
    """These and the system's images in one archive, made once for each set; each recipe after its base."""
    recipes = [*system_recipes(), *recipes]
    key = hashlib.sha256("\0".join(recipe.key for recipe in recipes).encode()).hexdigest()[:16]
    folder = _once(f"images-{key}", lambda part: _write(recipes, part))
    mounts = tuple((str(volume_of(one)), one.volume) for one in recipes if one.volume)
    return Archive(folder / "images.tar", json.loads((folder / "digests.json").read_text()), mounts)


def volume_of(recipe: Recipe) -> Path:
    """Where the recipe's volume lies."""
    return tools_cache() / f"volume-{recipe.key[:16]}" / "content"


def _write(recipes: Sequence[Recipe], folder: Path) -> None:
    layout = folder / "layout"
    for recipe in recipes:
        build(recipe)
        buildah("push", "--quiet", recipe.name, f"oci:{layout}:{recipe.name}")
    digests = _name(layout / "index.json")
    (folder / "digests.json").write_text(json.dumps(digests))
    with tarfile.open(folder / "images.tar", "w") as tar:
        tar.add(layout, "")
    shutil.rmtree(layout)


def build(recipe: Recipe) -> None:
    """Run the Dockerfile of a recipe whose base is built; raises `SetupError` with what a failed step says."""
    with Step(f"image {recipe.name}"), tempfile.TemporaryDirectory() as context:
        for name, made in recipe.files.items():
            source, target = made(), Path(context) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
        (Path(context) / "Dockerfile").write_text(recipe.dockerfile)
        # A step that downloads trusts whom this machine trusts: a proxy may have a certificate of its own.
        trusted = f"--volume={CERTIFICATES}:{CERTIFICATES}:ro"
        options = ["--quiet", "--pull-never", "--layers", "--network=host", trusted, *recipe.arguments]
        buildah("build", *options, *_volume(recipe), "--tag", recipe.name, context)


def _volume(recipe: Recipe) -> list[str]:
    if not recipe.volume:
        return []
    fill, folder = recipe.fill, volume_of(recipe)
    known = folder.exists()

    def make(part: Path) -> None:
        (part / "content").mkdir()
        if fill:
            fill(part / "content")

    _once(folder.parent.name, make)
    # Steps that are known from before wrote into a folder that is gone.
    return [f"--volume={folder}:{recipe.volume}:rw", *([] if known else ["--no-cache"])]


def own_bytes(recipe: Recipe, base: Recipe) -> int:
    """What the layers of a built image add to its base's, unpacked, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        layers: dict[str, dict[str, int]] = {}
        for one in (recipe, base):
            buildah("push", "--quiet", "--disable-compression", one.name, f"dir:{folder}/{one.name.replace('/', '-')}")
            manifest = json.loads(Path(folder, one.name.replace("/", "-"), "manifest.json").read_text())
            layers[one.name] = {layer["digest"]: layer["size"] for layer in manifest["layers"]}
        return sum(size for digest, size in layers[recipe.name].items() if digest not in layers[base.name])


def _name(index: Path) -> dict[str, str]:
    """Give containerd the names it imports: each image by its tag and by its digest, as pods refer to it."""
    content = json.loads(index.read_text())
    digests = {one["annotations"]["org.opencontainers.image.ref.name"]: one for one in content["manifests"]}
    content["manifests"] = [
        {**one, "annotations": {"io.containerd.image.name": known}}
        for name, one in digests.items()
        for known in (name, _by_digest(name, one["digest"]))
    ]
    index.write_text(json.dumps(content))
    return {name: one["digest"] for name, one in digests.items()}


def _by_digest(name: str, digest: str) -> str:
    return f"{name.rpartition(':')[0]}@{digest}"


def buildah(*arguments: str) -> None:
    """Run `buildah` with a storage of its own in the tools' cache; raises `SetupError` with what it says.

    Docker's format, because OCI's knows no SHELL; steps run in a chroot, which needs no container runtime.
    """
    storage = tools_cache() / "containers"
    storage.mkdir(parents=True, exist_ok=True)
    configuration = storage / "storage.conf"
    text = f'[storage]\ndriver = "overlay"\ngraphroot = "{storage}/graph"\nrunroot = "{storage}/run"\n'
    if not configuration.exists() or configuration.read_text() != text:
        configuration.write_text(text)
    own = {"CONTAINERS_STORAGE_CONF": str(configuration), "BUILDAH_ISOLATION": "chroot", "BUILDAH_FORMAT": "docker"}
    _run(["unshare", "--mount", "buildah", *arguments], {**os.environ, **own})  # it leaves mounts of its storage behind


def _debian_options() -> list[str]:
    return [
        SUITE,
        "--variant=minbase",
        '--aptopt=Apt::Install-Recommends "false"',
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")),
    ]


def _debian() -> Path:
    suite, *options = _debian_options()

    def make(folder: Path) -> None:
        with Step(f"Debian {suite} from its packages"):
            _run(["mmdebstrap", "--quiet", *options, suite, str(folder / "debian.tar")])

    return _once(f"debian-{_digest(options)}", make) / "debian.tar"


def _pause() -> Path:
    def make(folder: Path) -> None:
        _run(["gcc", "-static", "-Os", "-s", "-o", str(folder / "pause"), str(PAUSE)])

    return _once(f"pause-{_digest([PAUSE.read_text()])}", make) / "pause"


def _once(name: str, make: Callable[[Path], None]) -> Path:
    return once(name, make, waiting=lambda: say(f"{name}: waiting for another run that is making it"))


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SetupError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()[-800:]}")
