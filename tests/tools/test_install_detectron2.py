"""The installer of Detectron2: its table of fixes, and what it does with what it finds."""

import importlib
import subprocess
import sys
from pathlib import Path

import detectron2
import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def installer(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setattr("sys.argv", ["install_detectron2.py"])
    return importlib.import_module("install_detectron2")


def test_every_fix_says_why_and_changes_something(installer):
    for fix in installer.FIXES:
        assert fix.old != fix.new
        assert len(fix.why) > 10
        assert fix.count > 0


def test_a_fix_that_no_longer_matches_stops_with_its_file(installer, tmp_path):
    fix = installer.Fix("data/a.py", "old", "new", "a good reason", count=2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.py").write_text("old and old")
    installer.apply_fixes(tmp_path, (fix,))
    assert (tmp_path / "data/a.py").read_text() == "new and new"
    with pytest.raises(installer.InstallError, match=r"data/a\.py.*a good reason.*expected 2.*found 0"):
        installer.apply_fixes(tmp_path, (fix,))
    with pytest.raises(installer.InstallError, match=r"missing\.py"):
        installer.apply_fixes(tmp_path, (installer.Fix("missing.py", "a", "b", "no such file"),))


def _probe(returncode):
    return lambda: subprocess.CompletedProcess([], returncode, stdout="0.6 at somewhere", stderr="broken import")


def test_the_probe_takes_a_detectron2_whose_model_zoo_needs_pkg_resources(installer, monkeypatch, capsys):
    for name in ("detectron2.model_zoo", "detectron2.model_zoo.model_zoo", "pkg_resources"):
        monkeypatch.setitem(sys.modules, name, None)
    exec(installer.PROBE, {})
    assert str(Path(detectron2.__file__).parent) in capsys.readouterr().out


@pytest.mark.parametrize("version", ["0.6", "0.7.dev1", None])
def test_a_working_detectron2_is_left_alone(installer, monkeypatch, capsys, version):
    monkeypatch.setattr(installer, "installed_version", lambda: version)
    monkeypatch.setattr(installer, "probe", _probe(0))
    monkeypatch.setattr(installer, "install", lambda constraint: pytest.fail("it was replaced"))
    assert installer.main() == 0
    assert "left as it is" in capsys.readouterr().out


def test_a_build_of_ones_own_gets_the_opencv_that_it_lacks(installer, monkeypatch):
    installed = []
    monkeypatch.setattr(installer, "opencv_requirement", lambda: ("opencv-python",))
    monkeypatch.setattr(installer, "installed_version", lambda: "0.7.dev1")
    monkeypatch.setattr(installer, "run_pip", lambda *arguments: installed.append(arguments[-1]))
    monkeypatch.setattr(installer, "probe", lambda: _probe(0 if installed else 1)())
    assert installer.main() == 0
    assert installed == ["opencv-python"]


def test_a_users_broken_build_is_reported_and_left_alone(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "installed_version", lambda: "0.6")
    monkeypatch.setattr(installer, "probe", _probe(1))
    monkeypatch.setattr(installer, "install", lambda constraint: pytest.fail("it was replaced"))
    assert installer.main() == 1
    assert "broken import" in capsys.readouterr().err


@pytest.mark.parametrize("works", [True, False])
def test_own_wheel_of_another_table_is_replaced(installer, monkeypatch, works):
    installed = []
    monkeypatch.setattr(installer, "installed_version", lambda: "0.6+patched.00000000")
    monkeypatch.setattr(installer, "probe", _probe(0 if works else 1))
    monkeypatch.setattr(installer, "install", installed.append)
    assert installer.main() == (0 if works else 1)
    assert installed == [None]


def test_a_wrong_archive_is_refused(installer, monkeypatch, tmp_path):
    monkeypatch.setattr(installer, "run_pip", lambda *a: (tmp_path / "pb1-detectron2-0.6.tar.gz").write_bytes(b"x"))
    with pytest.raises(installer.InstallError, match="SHA-256"):
        installer.fetch(tmp_path)


def test_headless_opencv_where_libgl_is_missing(installer, monkeypatch):
    monkeypatch.setattr(installer.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(installer.ctypes.util, "find_library", lambda name: None)
    assert installer.opencv_requirement() == ("opencv-python-headless",)
    monkeypatch.setattr(installer.ctypes.util, "find_library", lambda name: "libGL.so.1")
    assert installer.opencv_requirement() == ("opencv-python",)
