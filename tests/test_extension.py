"""The compiled operators, and life without them."""

import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from maskrcnn_plus.ops import extension

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not extension.is_available(), reason=extension.why_missing())
def test_cpu_capability_is_what_the_processor_has():
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    capability = torch.ops.maskrcnn_plus.cpu_capability()
    assert (capability == "AVX512") == all(f"avx512{x}" in flags for x in ("f", "bw", "vl", "dq"))
    assert (capability == "DEFAULT") == ("avx2" not in flags)


@pytest.mark.skipif(not extension.is_available(), reason=extension.why_missing())
@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="PyTorch without OpenMP")
def test_operators_run_on_as_many_threads_as_pytorch():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.ops.maskrcnn_plus.parallel_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not extension.is_available(), reason=extension.why_missing())
def test_the_names_that_stand_in_for_the_library_have_its_schemas():
    for schema in extension.SCHEMAS:
        name = schema.partition("(")[0]
        compiled = getattr(torch.ops.maskrcnn_plus, name).default._schema
        assert str(compiled).removeprefix("maskrcnn_plus::") == schema


def test_a_missing_library_is_explained_and_warned_of_once(monkeypatch, tmp_path):
    monkeypatch.setattr(extension, "__file__", str(tmp_path / "ops" / "extension.py"))
    reason = extension._load()
    assert "pip install --no-build-isolation" in reason
    (tmp_path / "_C.so").write_bytes(b"no library")
    assert "cannot be loaded" in extension._load()
    monkeypatch.setattr(extension, "_why_missing", reason)
    monkeypatch.setattr(extension, "_warned", False)
    with pytest.warns(UserWarning, match="without its compiled operators.*left out"):
        extension.warn_once("roi_align")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extension.warn_once("roi_align")
    assert not extension.is_available()


def test_wheel_without_the_extension_has_the_configs_and_runs(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("maskrcnn_plus", "configs", "csrc", "tools", "setup.py", "pyproject.toml", "README.md"):
        (source / name).symlink_to(ROOT / name)
    environment = {**os.environ, "MASKRCNN_PLUS_NO_EXT": "1"}
    subprocess.run([*command, str(source)], check=True, env=environment, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    shipped = {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.py")}
    assert shipped
    assert all((installed / "maskrcnn_plus" / path).is_file() for path in shipped)
    assert not list(installed.rglob("*.so"))
    code = (
        "import maskrcnn_plus.config as c, maskrcnn_plus.ops.extension as e; print(e.is_available(), *c.list_configs())"
    )
    start = f"import site, sys; sys.path[:0] = {[str(installed), *sys.path]!r}; {code}"
    result = subprocess.run([sys.executable, "-S", "-c", start], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.startswith("False "), result.stderr
    assert "nuclei/mask_rcnn_lite0_fpn" in result.stdout


def test_a_source_archive_made_without_pytorch_has_the_operators(tmp_path):
    environment = {**os.environ, "MASKRCNN_PLUS_NO_EXT": "1"}
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    listed = (tmp_path / "maskrcnn_plus.egg-info" / "SOURCES.txt").read_text().split()
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")} <= set(listed)
