#!/usr/bin/env python3
"""Make Detectron2 importable: leave a working one alone, else install release 0.6 as patched pure Python.

The only release on the Python package index is the source archive `pb1-detectron2` 0.6, whose C++ sources are missing
and whose Python code predates torch 2, numpy 2 and pillow 10. This script fetches it with pip, checks its SHA-256,
applies the fixes of `detectron2_fixes.py`, builds a wheel without compiled code and installs it.

Usage: python tools/install_detectron2.py [--constraint FILE]
"""

from __future__ import annotations

import argparse
import ctypes.util
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from detectron2_fixes import FIXES, Fix

ARCHIVE = "pb1-detectron2==0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
VERSION = "0.6+patched." + hashlib.sha256(repr(FIXES).encode()).hexdigest()[:8]

REQUIREMENTS = (
    "cloudpickle",
    "fvcore>=0.1.5,<0.1.6",
    "hydra-core>=1.1",
    "iopath>=0.1.7,<0.2",
    "matplotlib",
    "numpy",
    "omegaconf>=2.1",
    "packaging",
    "Pillow>=7.1",
    "pycocotools>=2.0.2",
    "PyYAML",
    "shapely",  # fvcore crops polygons with it
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.8",
)
PROJECTS = {
    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
    "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}

# What this project uses of Detectron2, in either version.
PROBE = """
import os
import detectron2
import detectron2.checkpoint, detectron2.data, detectron2.engine, detectron2.evaluation
import detectron2.modeling, detectron2.projects.point_rend, detectron2.solver, detectron2.structures
import detectron2.utils.events
from detectron2.config import LazyConfig, configurable, instantiate
# its configs, without its Python module, which needs pkg_resources in the development head
zoo = os.path.join(detectron2.__path__[0], "model_zoo", "configs")
LazyConfig.load(os.path.join(zoo, "common", "models", "mask_rcnn_fpn.py"))
try:
    from detectron2 import _C
    ops = "with its compiled extension"
except ImportError as error:
    ops = "without its compiled extension (no rotated boxes, no deformable convolution of its own)"
print(f"{detectron2.__version__} {ops}, at {detectron2.__path__[0]}")
"""


class InstallError(Exception):
    """The installation cannot go on; the message says why and what to do."""


def probe() -> subprocess.CompletedProcess[str]:
    """Import what this project needs of Detectron2 in a fresh interpreter."""
    with tempfile.TemporaryDirectory() as elsewhere:
        return subprocess.run([sys.executable, "-c", PROBE], cwd=elsewhere, capture_output=True, text=True)


def installed_version() -> str | None:
    """Version of the installed distribution, None where there is none."""
    try:
        return importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return None


def is_ours(version: str | None) -> bool:
    """True for a wheel that this script built, of this or an earlier table of fixes."""
    return bool(version) and "+patched." in version


def run_pip(*arguments: str) -> None:
    """Run pip of this interpreter; its last lines become the error when it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        tail = "\n".join(result.stdout.splitlines()[-15:])
        raise InstallError(f"`{' '.join(command)}` failed:\n{tail}")


def fetch(folder: Path) -> Path:
    """Download the source archive into `folder`; pip compares the hash before it unpacks anything."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{ARCHIVE} --hash=sha256:{SHA256}\n")
    options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes")
    run_pip("download", "--quiet", *options, "--dest", str(folder), "-r", str(wanted))
    archive = next(folder.glob("*.tar.gz"), None)
    if archive is None:
        raise InstallError(f"pip fetched no source archive of {ARCHIVE} into {folder}.")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        raise InstallError(f"{archive.name} has SHA-256 {digest}, expected {SHA256}: it is not the known release.")
    return archive


def apply_fixes(package: Path, fixes: tuple[Fix, ...] = FIXES) -> None:
    """Apply every fix below `package` (the folder `detectron2`).

    Raises:
        InstallError: where a fix does not match its file exactly as often as its entry says.
    """
    for fix in fixes:
        path = package / fix.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = text.count(fix.old)
        if found != fix.count:
            raise InstallError(
                f"The fix of detectron2/{fix.file} ({fix.why}) no longer matches: expected {fix.count} x "
                f"{fix.old!r}, found {found}. It is not the archive that tools/detectron2_fixes.py is for."
            )
        path.write_text(text.replace(fix.old, fix.new), encoding="utf-8")


def build_wheel(archive: Path, folder: Path) -> Path:
    """Unpack, fix and build `detectron2` as a wheel without compiled code."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz")
    apply_fixes(source / "detectron2")
    version_file = source / "detectron2" / "__init__.py"
    version_file.write_text(version_file.read_text().replace('__version__ = "0.6"', f'__version__ = "{VERSION}"'))
    (source / "setup.cfg").unlink(missing_ok=True)
    (source / "setup.py").write_text(
        "from setuptools import find_packages, setup\n"
        f"projects = {PROJECTS!r}\n"
        f"setup(name='detectron2', version={VERSION!r}, license='Apache-2.0', python_requires='>=3.8',\n"
        "      description='Detectron2 0.6 as pure Python, patched for current releases of its dependencies',\n"
        "      packages=find_packages(include=['detectron2', 'detectron2.*']) + list(projects), package_dir=projects,\n"
        "      package_data={'detectron2.model_zoo': ['configs/**/*.yaml', 'configs/**/*.py']},\n"
        f"      install_requires={list(REQUIREMENTS)!r})\n"
    )
    run_pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    return next(folder.glob("detectron2-*.whl"))


def opencv_requirement() -> tuple[str, ...]:
    """The OpenCV build to install: none if there is one, the headless one where libGL is missing."""
    if importlib.util.find_spec("cv2") is not None:
        return ()
    return ("opencv-python",) if ctypes.util.find_library("GL") else ("opencv-python-headless",)


def constraints(file: str | None) -> tuple[str, ...]:
    """The arguments of pip for a file of constraints."""
    return ("--constraint", os.path.abspath(file)) if file else ()


def install(constraint: str | None) -> None:
    """Fetch, fix, build and install."""
    if importlib.util.find_spec("torch") is None:
        raise InstallError("PyTorch is not installed: run `pip install torch torchvision` first.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"Fetching {ARCHIVE} ...", flush=True)
        archive = fetch(folder)
        print(f"Applying {len(FIXES)} fixes and building {VERSION} ...", flush=True)
        wheel = build_wheel(archive, folder)
        print("Installing it with what it needs ...", flush=True)
        run_pip("install", "--quiet", *constraints(constraint), *opencv_requirement(), *REQUIREMENTS)
        run_pip("install", "--quiet", "--force-reinstall", "--no-deps", str(wheel))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--constraint", metavar="FILE", help="pip constraints file with the versions to install")
    args = parser.parse_args()
    version = installed_version()
    found = importlib.util.find_spec("detectron2") is not None
    try:
        if found and (not is_ours(version) or version == VERSION):
            if opencv := opencv_requirement():  # a build of one's own comes without it
                run_pip("install", "--quiet", *constraints(args.constraint), *opencv)
            result = probe()
            if result.returncode == 0:
                print(f"Detectron2 {result.stdout.strip()}: left as it is.")
                return 0
            if not is_ours(version):
                raise InstallError(
                    "A Detectron2 is installed that cannot be imported; it was left alone. Repair it, or remove it "
                    f"with `pip uninstall detectron2` and run this again. Its error:\n{result.stderr.strip()}"
                )
        install(args.constraint)
        result = probe()
        if result.returncode:
            raise InstallError(f"The installed Detectron2 cannot be imported:\n{result.stderr.strip()}")
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    print(f"Detectron2 {result.stdout.strip()}: installed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
