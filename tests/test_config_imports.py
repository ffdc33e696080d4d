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


def test_an_installed_wheel_has_them_too(experiment, tmp_path):
    """Built without the operators, and unpacked where no source checkout is near."""
    environment = {**os.environ, "MASKRCNN_PLUS_NO_EXT": "1"}
    source = tmp_path / "source"  # setuptools builds in the source folder
    source.mkdir()
    for name in ("maskrcnn_plus", "configs", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-build-isolation"]
    target = tmp_path / "site"
    subprocess.run([*pip, "install", *options, "--target", str(target), str(source)], check=True, env=environment)
    code = (
        "import json, sys\n"
        "import maskrcnn_plus\n"
        "from maskrcnn_plus.config import get_config, list_configs\n"
        "cfg = get_config(sys.argv[1])\n"
        "print(json.dumps([maskrcnn_plus.__file__, cfg.train.max_iter, cfg.optimizer.lr, cfg.dataset.root,"
        " cfg.model.backbone._target_.__name__, list_configs()]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(target), os.environ.get("PYTHONPATH", "")))}
    printed = subprocess.run(
        [sys.executable, "-c", code, experiment],
        check=True,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout
    place, *values, names = json.loads(printed.splitlines()[-1])
    assert Path(place).is_relative_to(target)
    assert values == [7, 0.125, "mine", "Mine"]
    assert "nuclei/mask_rcnn_lite0_fpn" in names
