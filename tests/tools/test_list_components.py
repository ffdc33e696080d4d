"""tools/list_components.py: what it lists, and that it says it the same way every time."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import LazyCall, instantiate
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils.registry import locate

from maskrcnn_plus.backbones import TimmBackbone
from maskrcnn_plus.components import REGISTRIES, list_components

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "list_components.py"
PACKAGES = sorted(path.parent.name for path in (ROOT / "maskrcnn_plus").glob("*/__init__.py"))


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("list_components", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def by_path():
    return {component.path: component for component in list_components()}


def test_timm_backbone_with_its_options(by_path):
    component = by_path["maskrcnn_plus.backbones.TimmBackbone"]
    assert (component.name, component.registry) == ("TimmBackbone", "BACKBONE")
    assert component.summary == TimmBackbone.__doc__.splitlines()[0]
    assert component.options["name"] is None
    assert component.options["weights"] == "''"
    assert component.options["out_features"] == "('res2', 'res3', 'res4', 'res5')"
    assert "self" not in component.options


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_that_a_package_exports_is_there(by_path, package):
    module = importlib.import_module(f"maskrcnn_plus.{package}")
    for name in getattr(module, "__all__", []):
        component = by_path[f"maskrcnn_plus.{package}.{name}"]
        assert component.summary, name
        assert component.name in (name, getattr(getattr(module, name), "__name__", None))


def test_everything_that_is_registered_is_there_once_and_nothing_of_others(by_path):
    for registry_name, registry in REGISTRIES.items():
        ours = sorted(name for name, thing in registry if thing.__module__.startswith("maskrcnn_plus."))
        assert ours == sorted(c.name for c in by_path.values() if c.registry == registry_name)
    assert len(by_path) == len(list_components())
    assert all(path.startswith("maskrcnn_plus.") for path in by_path)
    assert {"BACKBONE", "PROPOSAL_GENERATOR", None} <= {component.registry for component in by_path.values()}


def test_every_path_is_a_target_that_a_config_can_name(by_path):
    for path, component in by_path.items():
        if component.options:
            assert callable(locate(path)), path
    pooler = LazyCall("maskrcnn_plus.roi.PyramidROIAlign")(output_size=7, scales=(0.25,), sampling_ratio=0)
    assert set(pooler) - {"_target_"} <= set(by_path["maskrcnn_plus.roi.PyramidROIAlign"].options)
    assert instantiate(pooler).output_size == (7, 7)


def test_options_passed_on_to_a_base_class_are_listed(monkeypatch):
    class Widened(TimmBackbone):
        """A backbone."""

        def __init__(self, *, extra=len, **kwargs):
            super().__init__(**kwargs)

    Widened.__module__ = "maskrcnn_plus.backbones.widened"
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, "Widened", Widened)
    (component,) = [c for c in list_components() if c.name == "Widened"]
    assert component.options["extra"] == "builtins.len"
    assert component.options["freeze_at"] == "0"


@pytest.fixture(scope="module")
def fresh_process():
    """Another process with other hashes: on stderr what `import maskrcnn_plus` registers, then the tool's text."""
    code = (
        "import runpy, sys, maskrcnn_plus, detectron2.modeling as m\n"
        f"for key in {list(REGISTRIES)}:\n"
        "    for name, thing in getattr(m, key + '_REGISTRY'):\n"
        "        thing.__module__.startswith('maskrcnn_plus.') and print(key, name, file=sys.stderr)\n"
        f"runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    )
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True, cwd=ROOT.parent)


def test_the_text_is_the_same_in_every_process(tool, capsys, fresh_process):
    tool.main([])
    text = capsys.readouterr().out
    assert " at 0x" not in text
    assert "weights='', freeze_at=0" in text
    assert fresh_process.stdout == text


def test_importing_the_package_registers_all_of_them(by_path, fresh_process):
    registered = sorted(f"{c.registry} {c.name}" for c in by_path.values() if c.registry)
    assert sorted(fresh_process.stderr.splitlines()) == registered


@pytest.mark.parametrize("name", ["BACKBONE", "proposal_generator"])
def test_one_registry_as_json(tool, capsys, by_path, name):
    tool.main(["--registry", name, "--json"])
    entries = json.loads(capsys.readouterr().out)
    assert {entry["registry"] for entry in entries} == {name.upper()}
    assert [entry["path"] for entry in entries] == [c.path for c in by_path.values() if c.registry == name.upper()]
    assert all(set(entry) == {"name", "registry", "path", "summary", "options"} for entry in entries)


def test_an_empty_and_an_unknown_registry_say_so(tool, capsys, monkeypatch):
    monkeypatch.setattr(tool, "list_components", list)
    tool.main(["--registry", "ROI_HEADS"])
    assert "nothing in the registry ROI_HEADS" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tool.main(["--registry", "NECK"])
    assert "PROPOSAL_GENERATOR" in capsys.readouterr().err
