"""The words of `maskrcnn-plus`, and what they call."""

import importlib.util
import sys
from pathlib import Path

import pytest

from maskrcnn_plus.apps import command_line

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def command(monkeypatch):
    spec = importlib.util.spec_from_file_location("command_tool", TOOLS / "command.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    return module


@pytest.fixture
def tools(command, tmp_path, monkeypatch):
    """A folder with tools of its own."""
    text = '"""Do it.\n\nMore."""\nimport sys\ndef main(argv=None):\n    return sys.argv'
    (tmp_path / "some_tool_here.py").write_text(text)
    (tmp_path / "check_data.py").write_text('"""Look."""\nimport no_such_module\ndef main(argv=None):\n    pass')
    (tmp_path / "shared.py").write_text('"""No tool."""\n')
    (tmp_path / "command.py").write_text('"""This."""\ndef main():\n    pass')
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    monkeypatch.delitem(sys.modules, "check_data", raising=False)  # that of other tests
    yield command
    sys.modules.pop("some_tool_here", None)


def test_words_are_found_in_the_folder(tools, capsys):
    assert tools.find_commands() == {"check": ("check_data", "Look."), "some-tool-here": ("some_tool_here", "Do it.")}
    assert tools.main([]) == tools.main(["--help"]) == 0
    assert "  check           Look." in capsys.readouterr().out


def test_a_word_gets_its_arguments_under_its_name(tools):
    assert tools.main(["some-tool-here", "a", "--b=c"]) == ["maskrcnn-plus some-tool-here", "a", "--b=c"]


def test_an_unknown_word_is_told_with_the_nearest(tools, capsys):
    assert tools.main(["chek"]) == 2
    assert capsys.readouterr().err == "maskrcnn-plus: there is no command 'chek'. Did you mean check?\n"


@pytest.mark.parametrize("name", ["detectron2", "cv2"])
def test_what_pip_does_not_bring_is_named_with_the_tool_that_does(tools, monkeypatch, capsys, name):
    (tools.FOLDER / "check_data.py").write_text(f'"""Look."""\nimport {name}\ndef main(argv=None):\n    pass')
    monkeypatch.setitem(sys.modules, name, None)
    assert tools.main(["check"]) == 2
    assert "is missing. Run: maskrcnn-plus install-detectron2\n" in capsys.readouterr().err


def test_help_names_the_commands_that_are_there(tools):
    text = '"""Do.\n\nUse: python tools/check_data.py x"""\ndef main(argv=None):\n    print(__doc__)'
    (tools.FOLDER / "some_tool_here.py").write_text(text)
    tools.main(["some-tool-here"])
    assert sys.modules["some_tool_here"].__doc__.endswith("Use: maskrcnn-plus check x")


@pytest.mark.parametrize("tool", ["predict", "train_net", "evaluate", "finetune"])
def test_a_tool_names_others_as_it_was_called_itself(command, monkeypatch, tool):
    monkeypatch.setattr(sys, "argv", ["tools/finetune.py"])
    assert command_line(tool) == f"python tools/{tool}.py"
    monkeypatch.setattr(sys, "argv", ["maskrcnn-plus finetune"])
    start, word = command_line(tool).split()
    assert (start, command.find_commands()[word][0]) == ("maskrcnn-plus", tool)


def test_every_tool_has_a_line(command):
    commands = command.find_commands()
    assert next(iter(commands)) in command.FIRST
    assert {"train", "predict", "evaluate", "convert"} <= set(commands)
    assert all(line.endswith((".", ":")) or len(line) > 20 for _, line in commands.values())


@pytest.mark.parametrize("tool", ["convert", "demo", "export", "finetune", "predict", "predict_cluster"])
def test_an_output_that_is_no_folder_is_refused_at_once(tool, tmp_path, monkeypatch, capsys):
    if tool == "predict_cluster":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra cluster)")
    main = importlib.import_module(tool).main
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").touch()
    for value, problem in (("", "the name is empty"), ("notes.txt", "notes.txt is a file")):
        with pytest.raises(SystemExit) as end:
            main(["--output", value])
        assert end.value.code == 2
        assert f"argument --output: {problem}; name a folder" in capsys.readouterr().err
