"""Build of maskrcnn_plus and of its C++ operators.

`configs/` is shipped as `maskrcnn_plus.configs`, and `tools/`, which must be found without importing the package, as
`maskrcnn_plus_tools`.
"""

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


def packages_of(name: str, package: str) -> dict[str, str]:
    """Package name -> folder of a folder of this one and of every folder below it."""
    folders = [ROOT / name, *sorted(p for p in (ROOT / name).rglob("*") if p.is_dir())]
    below = [folder.relative_to(ROOT / name).parts for folder in folders if folder.name != "__pycache__"]
    return {".".join((package, *parts)): "/".join((name, *parts)) for parts in below}


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


shipped = packages_of("configs", "maskrcnn_plus.configs") | packages_of("tools", "maskrcnn_plus_tools")
setup(
    packages=find_packages(include=["maskrcnn_plus", "maskrcnn_plus.*"]) + list(shipped),
    package_dir=shipped,
    **extension_options(),
)
