"""Build images/operator without a registry: on a base made by debootstrap, with buildah, as root.

    build_operator_image.py [--storage DIR] [--storage-driver vfs] [--tag NAME] [--rebuild-base]

The image lands in a storage of its own, so that nothing of the computer's images is touched:
    buildah --root DIR/graph --runroot DIR/run --storage-driver vfs images
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITE = "bookworm"
"""The Debian release whose python3.11 the locks are for."""
BASE = f"localhost/trireme-base:{SUITE}"
UV = "localhost/uv:of-this-environment"
TAG = "localhost/trireme-operator:debootstrap"
CERTIFICATES = "/run/secrets/certificates"


def missing() -> str:
    """Why the image cannot be built on this computer; "" where it can."""
    if os.geteuid() != 0:
        return "building the operator's image takes root"
    tools = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]
    return f"building the operator's image takes {' and '.join(tools)} (Debian's packages)" if tools else ""


@dataclass(frozen=True)
class Buildah:
    """buildah on a storage of its own."""

    storage: Path
    driver: str = "vfs"

    def command(self, *arguments: str | Path) -> list[str]:
        """buildah's command line."""
        own = ["buildah", "--root", self.storage / "graph", "--runroot", self.storage / "run"]
        return [str(part) for part in (*own, "--storage-driver", self.driver, *arguments)]

    def __call__(self, *arguments: str | Path) -> str:
        """Run it; what it printed. Raises CalledProcessError."""
        return subprocess.run(self.command(*arguments), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The root of a new container of the image, which may be written to; both are gone afterwards."""
        container = self("from", "--pull-never", image)
        try:
            yield Path(self("mount", container))
        finally:
            self("rm", container)

    def has(self, image: str) -> bool:
        """Whether the image is in the storage."""
        return bool(self("images", "--quiet", "--filter", f"reference={image}"))


def make_base(buildah: Buildah) -> None:
    """The smallest Debian with python3.11."""
    container = buildah("from", "scratch")
    root = Path(buildah("mount", container))
    command = ["debootstrap", "--variant=minbase", "--include=python3.11", SUITE, str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / folder)
    buildah("commit", "--quiet", "--rm", container, BASE)


def make_uv(buildah: Buildah) -> None:
    """An image with uv alone, in place of its publisher's."""
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if uv is None:
        sys.exit("error: uv is missing; `make setup` brings it")
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, uv, "/uv")
    buildah("commit", "--quiet", "--rm", container, UV)


def build(buildah: Buildah, tag: str = TAG) -> None:
    """The operator's image. What builds it is read from the package index."""
    arguments = ["--build-arg", f"BASE_IMAGE={BASE}", "--build-arg", f"UV_IMAGE={UV}"]
    if certificates := os.environ.get("SSL_CERT_FILE"):
        arguments += ["--secret", f"id=certificates,src={certificates}"]
        arguments += ["--build-arg", f"SSL_CERT_FILE={CERTIFICATES}"]
    dockerfile = ROOT / "images" / "operator" / "Dockerfile"
    # Layers are not kept: each would be a whole copy of the one below.
    command = ["build", "--isolation", "chroot", "--pull-never", "--layers=false", "--quiet"]
    buildah(*command, *arguments, "--file", dockerfile, "--tag", tag, ROOT)


def main(arguments: Sequence[str] | None = None) -> None:
    """The base where it is missing, then the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, default=ROOT / ".trireme" / "images", help="folder for images")
    parser.add_argument("--storage-driver", default="vfs", help="vfs works everywhere; overlay is faster")
    parser.add_argument("--tag", default=TAG, help="name of the image")
    parser.add_argument("--rebuild-base", action="store_true", help="also where there is a base")
    given = parser.parse_args(arguments)
    if why := missing():
        sys.exit(f"error: {why}")
    given.storage.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(given.storage.resolve(), given.storage_driver)
    if given.rebuild_base or not buildah.has(BASE):
        make_base(buildah)
    make_uv(buildah)
    build(buildah, given.tag)
    print(given.tag)


if __name__ == "__main__":
    main()
