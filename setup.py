"""Build of maskrcnn_plus: the package, `configs/` as `maskrcnn_plus.configs`, and the C++ operators of `csrc/`."""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

NO_TORCH = """
maskrcnn_plus: PyTorch is not importable in this build, so the C++ operators are NOT built and slower fallbacks run.
To have them, install torch first and build in the same environment:
    pip install torch torchvision
    pip install --no-build-isolation .
(MASKRCNN_PLUS_NO_EXT=1 leaves them out on purpose.)
"""


def config_packages() -> dict[str, str]:
    """Package name -> folder of every folder below `configs/`, so that an installed user has the configs too."""
    folders = [ROOT / "configs", *sorted(p for p in (ROOT / "configs").rglob("*") if p.is_dir())]
    relative = [folder.relative_to(ROOT) for folder in folders if folder.name != "__pycache__"]
    return {"maskrcnn_plus." + ".".join(path.parts): path.as_posix() for path in relative}


def extension_options() -> dict:
    """The arguments of `setup` that build the C++ operators, empty where they are left out."""
    if os.environ.get("MASKRCNN_PLUS_NO_EXT", "0") not in ("", "0"):
        return {}
    try:
        from torch.backends import openmp
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        print(NO_TORCH, file=sys.stderr)
        return {}
    sources = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.cpp"))
    headers = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.h"))
    options = ["-O3", "-fvisibility=hidden"]
    if openmp.is_available():
        # Without it parallel_for runs on one thread. The library is not linked: that of PyTorch is loaded already, and
        # a second one would have threads of its own.
        options.append("-fopenmp")
    extension = CppExtension("maskrcnn_plus._C", sources, depends=headers, extra_compile_args={"cxx": options})
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


configs = config_packages()
setup(
    packages=find_packages(include=["maskrcnn_plus", "maskrcnn_plus.*"]) + list(configs),
    package_dir=configs,
    **extension_options(),
)
