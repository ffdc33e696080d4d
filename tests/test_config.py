"""Shipped configs by name, and the yacs keys."""

import re
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from omegaconf import DictConfig

import maskrcnn_plus.config
from maskrcnn_plus.config import add_config, detectron2_config, find_config, get_config, list_configs, load_config

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An installed package whose namespace folder `configs` holds two experiments over common parts."""
    files = {
        "common/model.py": "model = dict(depth=18)\n",
        "nuclei/small.py": "from ..common.model import model\nmodel.depth = 10\n",
        "nuclei/large.py": "from .small import model\nmodel.depth = 101\n",
        "nuclei/common/optim.py": "optim = dict(lr=1)\n",
        "nuclei/_draft.py": "raise RuntimeError('a draft is not to be run')\n",
        "_old/thing.py": "x = dict()\n",
        "nuclei/readme.txt": "not a config\n",
    }
    for name, text in files.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(maskrcnn_plus, "__path__", [str(tmp_path)])
    return tmp_path / "configs"


def test_lists_experiments_and_neither_parts_nor_drafts(installed):
    assert list_configs() == ["nuclei/large", "nuclei/small"]


@pytest.mark.parametrize("name", ["nuclei/large", "nuclei/large.py"])
def test_loads_by_name_with_relative_imports(installed, name):
    config = get_config(name)
    assert isinstance(config, DictConfig)
    assert config.model.depth == 101


def test_a_file_of_the_user_goes_by_its_path(installed, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("model = dict(depth=3)\n")
    assert find_config(str(path)) == str(path)
    assert get_config(str(path)).model.depth == 3


def test_a_train_of_detectron2s_gets_the_keys_that_it_lacks(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from maskrcnn_plus.config import detectron2_config\n"
        "train = detectron2_config('common/train.py').train\n"
        "train.log_period, train.mine = 7, len\n"
    )
    theirs, train = get_config(file).train, load_config(str(file), ["train.ema.enabled=true"]).train
    assert all(train[key] == value for key, value in theirs.items() if not isinstance(value, DictConfig))
    assert (train.log_period, train.checkpointer.period, train.ema.enabled) == (7, theirs.checkpointer.period, True)
    assert train.keys() >= get_config("demo/mask_rcnn_lite0_fpn").train.keys()


def test_a_config_is_a_fresh_copy(installed):
    get_config("nuclei/small").model.depth = -1
    assert get_config("nuclei/small").model.depth == 10


@pytest.mark.parametrize("name", ["nuclei/smal", "small", "", "common/model", "../configs/nuclei/small", "nuclei"])
def test_an_unknown_name_lists_the_known_ones(installed, name):
    with pytest.raises(ValueError, match=r"no shipped config .* Shipped: nuclei/large, nuclei/small"):
        get_config(name)


def test_an_unknown_name_suggests_the_closest(installed):
    with pytest.raises(ValueError, match="Did you mean nuclei/small"):
        get_config("nuclei/smal")


def test_configs_of_the_repository_all_load(monkeypatch):
    # its module imports pkg_resources in Detectron2's development head, which setuptools 81 and newer do not have
    for name in ("detectron2.model_zoo", "detectron2.model_zoo.model_zoo", "pkg_resources"):
        monkeypatch.setitem(sys.modules, name, None)
    paths = (path.relative_to(REPOSITORY / "configs") for path in (REPOSITORY / "configs").glob("**/[!_]*.py"))
    names = list_configs()
    assert names == sorted(path.as_posix()[: -len(".py")] for path in paths if "common" not in path.parts)
    for name in names:
        assert len(get_config(name)) > 0


def test_configs_of_detectron2s_model_zoo(monkeypatch):
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    lazy = detectron2_config("common/models/mask_rcnn_fpn.py")
    assert isinstance(lazy, DictConfig)
    assert lazy.model.backbone.out_channels == 256
    yacs = detectron2_config("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml")
    assert (yacs.MODEL.MASK_ON, yacs.MODEL.RESNETS.DEPTH, yacs.MODEL.BACKBONE.NAME) == (
        True,
        101,
        "build_resnet_fpn_backbone",  # of the file that it is based on
    )
    lazy.model.backbone.out_channels = 1
    assert detectron2_config("common/models/mask_rcnn_fpn.py").model.backbone.out_channels == 256
    with pytest.raises(FileNotFoundError, match=r"no config 'common/nothing\.py'.*install Detectron2"):
        detectron2_config("common/nothing.py")


def test_nothing_here_imports_detectron2s_model_zoo():
    own = {"tests/tools/test_detectron2_fixes.py"}  # looks at release 0.6 alone
    files = [
        path
        for folder in ("maskrcnn_plus", "configs", "tests", "tools")
        for path in (REPOSITORY / folder).rglob("*.py")
    ]
    importing = re.compile(r"^ *(from detectron2\.model_zoo|from detectron2 import .*model_zoo)", re.MULTILINE)
    found = {path.relative_to(REPOSITORY).as_posix() for path in files if importing.search(path.read_text())}
    assert found == own


def test_a_source_checkout_uses_its_own_folder_and_an_installation_without_configs_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "maskrcnn_plus.configs", None)  # nothing of that name is installed
    monkeypatch.setattr(maskrcnn_plus.config, "__file__", str(tmp_path / "maskrcnn_plus" / "config.py"))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "theirs.py").write_text("x = dict()\n")
    with pytest.raises(FileNotFoundError, match="not installed"):
        list_configs()
    (tmp_path / "pyproject.toml").touch()
    assert list_configs() == ["theirs"]


def test_add_config_gives_keys_that_can_be_merged():
    cfg = get_cfg()
    add_config(cfg)
    cfg.merge_from_list(["MODEL.TIMM.NAME", "resnet18", "MODEL.TIMM.NORM", "FrozenBN"])
    assert (cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.NORM, cfg.MODEL.TIMM.WEIGHTS) == ("resnet18", "FrozenBN", "")
    with pytest.raises(AssertionError, match="NO_SUCH_KEY"):
        cfg.merge_from_list(["MODEL.TIMM.NO_SUCH_KEY", 1])
