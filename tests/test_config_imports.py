"""`from maskrcnn_plus.configs...` in a LazyConfig of the user's, from a source checkout and from an installed wheel."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig

from maskrcnn_plus.config import get_config

ROOT = Path(__file__).resolve().parents[1]
MINE = {
    "my_parts.py": "class Mine:\n    pass\n",
    "recipe.py": "from maskrcnn_plus.configs.common.optim import AdamW as optimizer\noptimizer.lr = 0.125\n",
    "experiment.py": """
from detectron2.config import LazyCall as L
from my_parts import Mine

from maskrcnn_plus.configs.common.train import train
from maskrcnn_plus.configs.nuclei.mask_rcnn_lite0_fpn import dataloader, dataset, lr_multiplier, model
from maskrcnn_plus.configs.nuclei.variants.pafpn import model as other
from .recipe import optimizer

train.max_iter = 7
dataset.root = "mine"
model.backbone._target_ = Mine
""",
}


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """A folder of the user's with an experiment of shipped parts, a relative import and a module of its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine").mkdir()
    for name, text in MINE.items():
        (tmp_path / "mine" / name).write_text(text)
    yield str(tmp_path / "mine" / "experiment.py")
    sys.modules.pop("my_parts", None)


def test_a_config_of_ones_own_takes_shipped_parts_and_its_own_modules(experiment):
    cfg, shipped = get_config(experiment), get_config("nuclei/mask_rcnn_lite0_fpn")
    assert cfg.train.max_iter == 7
    assert cfg.optimizer.lr == 0.125
    assert cfg.model.backbone._target_.__name__ == "Mine"
    assert cfg.other.backbone._target_.__name__ == "PAFPN"
    assert cfg.dataloader.train.dataset.dataset.names.root == cfg.dataset.root == "mine"  # interpolations hold
    assert list(cfg.dataloader) == list(shipped.dataloader)
    assert (shipped.train.max_iter, shipped.dataset.root) == (2600, "datasets/nuclei")


def test_each_import_is_a_fresh_copy():
    module = importlib.import_module("maskrcnn_plus.configs.common.train")
    assert isinstance(module.train, DictConfig)
    module.train.max_iter = -1
    assert module.train == importlib.import_module("maskrcnn_plus.configs.common.train").train
    assert module.train.max_iter == 1000


def test_a_star_imports_all_parts():
    names: dict = {}
    exec("from maskrcnn_plus.configs.demo.mask_rcnn_lite0_fpn import *", names)
    assert {"dataloader", "dataset", "lr_multiplier", "model", "optimizer", "train"} <= names.keys()


def test_values_that_are_no_configs_come_as_they_are():
    names = importlib.import_module("maskrcnn_plus.configs.common.coco_classes").thing_classes
    assert isinstance(names, list)
    assert len(names) == 80


def test_what_does_not_exist_is_an_import_error():
    for statement in (
        "from maskrcnn_plus.configs.common.train import trian",
        "import maskrcnn_plus.configs.common.nothing",
        "from maskrcnn_plus.configs import nothing",
    ):
        with pytest.raises(ImportError):
            exec(statement, {})


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder of a wheel that is built without the operators and installed where no source checkout is near."""
    environment = {**os.environ, "MASKRCNN_PLUS_NO_EXT": "1"}
    source = tmp_path_factory.mktemp("source")  # setuptools builds in the source folder
    for name in ("maskrcnn_plus", "configs", "tools", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-build-isolation"]
    target = tmp_path_factory.mktemp("site")
    subprocess.run([*pip, "install", *options, "--target", str(target), str(source)], check=True, env=environment)
    return target


def run(installed, folder, *command):
    """Standard output of a Python process that has the installed package before others."""
    path = os.pathsep.join((str(installed), os.environ.get("PYTHONPATH", "")))
    options = {"cwd": folder, "capture_output": True, "text": True, "check": True}
    return subprocess.run([sys.executable, *command], env={**os.environ, "PYTHONPATH": path}, **options).stdout


def test_an_installed_wheel_has_them_too(experiment, tmp_path, installed):
    code = (
        "import json, sys\n"
        "import maskrcnn_plus\n"
        "from maskrcnn_plus.config import get_config, list_configs\n"
        "cfg = get_config(sys.argv[1])\n"
        "print(json.dumps([maskrcnn_plus.__file__, cfg.train.max_iter, cfg.optimizer.lr, cfg.dataset.root,"
        " cfg.model.backbone._target_.__name__, list_configs()]))\n"
    )
    place, *values, names = json.loads(run(installed, tmp_path, "-c", code, experiment).splitlines()[-1])
    assert Path(place).is_relative_to(installed)
    assert values == [7, 0.125, "mine", "Mine"]
    assert "nuclei/mask_rcnn_lite0_fpn" in names


def test_the_installed_command_lists_its_words_without_pytorch(tmp_path, installed):
    code = (
        "import sys\n"
        "from maskrcnn_plus_tools.command import main\n"
        "main([])\n"
        "print([name for name in ('torch', 'maskrcnn_plus', 'numpy') if name in sys.modules])\n"
    )
    *lines, loaded = run(installed, tmp_path, "-c", code).splitlines()
    words = [line.split()[0] for line in lines[2:]]
    assert loaded == "[]"
    assert {"train", "predict", "evaluate", "convert"} <= set(words)
    assert all(len(line.split()) > 3 for line in lines[2:])
    assert not {"command", "tuning", "train-net", "check-data"} & set(words)


def test_the_installed_command_runs_a_tool(tmp_path, installed):
    printed = run(installed, tmp_path, str(installed / "bin" / "maskrcnn-plus"), "install-detectron2", "--help")
    assert printed.startswith("usage: maskrcnn-plus install-detectron2")
