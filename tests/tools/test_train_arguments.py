"""The command line of tools/train_net.py: options before, between and after key=value."""

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "train_net.py"
KEYS = ["train.max_iter=3", "dataset.root=a b"]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("train_net", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("option", [["--resume"], ["--eval-only"], ["--num-gpus", "2"], ["--config-file", "x=y.py"]])
def test_options_may_stand_anywhere(tool, option, place):
    first = [] if option[0] == "--config-file" else ["--config-file", "a.py"]
    args = tool.parse_arguments([*first, *KEYS[:place], *option, *KEYS[place:]])
    assert args.opts == KEYS
    assert args.config_file == ("a.py" if first else "x=y.py")
    assert (args.resume, args.eval_only, args.num_gpus) == (
        option == ["--resume"],
        option == ["--eval-only"],
        2 if option[0] == "--num-gpus" else 1,
    )


@pytest.mark.parametrize("arguments", [["train.max_iter=3"], ["--config-file", "a.py", "--resum=3"], ["--config-file"]])
def test_what_cannot_be_understood_ends_with_2(tool, arguments, capsys):
    with pytest.raises(SystemExit) as end:
        tool.parse_arguments(arguments)
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo/mask_rcnn_lite0"], "Did you mean demo/mask_rcnn_lite0_fpn"),
        (["demo/mask_rcnn_lite0_fpn", "train.max_iter"], "key=value"),
        (["demo/mask_rcnn_lite0_fpn", "train.max_itre=3"], "train.max_iter"),
        (["demo/mask_rcnn_lite0_fpn", "train.max_iter=-3"], "train.max_iter=-3: a whole number"),
        (["broken.py"], "syntax error"),
        (["raises.py"], "ModuleNotFoundError: No module named 'nothing'"),
    ],
)
def test_what_no_run_can_start_with_ends_with_1_and_a_line(tool, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    (tmp_path / "broken.py").write_text("train = dict(\n")
    (tmp_path / "raises.py").write_text("import nothing\n")
    monkeypatch.setattr(tool, "launch", lambda *_: pytest.fail("something was started"))
    assert tool.main(["--config-file", *arguments]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_config_is_loaded_once_in_a_process(tool, tmp_path, monkeypatch):
    """A module that it imports and changes would be changed twice."""
    base = "from maskrcnn_plus.configs.demo.mask_rcnn_lite0_fpn import dataloader, dataset, model, optimizer, train\n"
    (tmp_path / "base_of_config.py").write_text(base)
    config = tmp_path / "config.py"
    config.write_text("from base_of_config import *\n\ndataset.thing_classes.append('star')\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    seen = []
    monkeypatch.setattr(tool, "run", lambda args, cfg: seen.append(list(cfg.dataset.thing_classes)))
    assert tool.main(["--config-file", str(config), "train.device=cpu"]) == 0
    assert seen == [["round", "spindle", "lobed", "star"]]
    sys.modules.pop("base_of_config")
