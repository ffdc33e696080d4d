"""Inputs: what is found, in which order, and that the results of no two files have the same name."""

import os

import pytest

from maskrcnn_plus.apps.predict_files.inputs import InputFile, list_inputs


@pytest.fixture
def touch(tmp_path, monkeypatch):
    """Make empty files below tmp_path, which is the current folder."""
    monkeypatch.chdir(tmp_path)

    def touch(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    return touch


def names_of(*entries, **options):
    return [file.name for file in list_inputs(entries, **options)]


def test_folders_and_patterns_are_expanded_in_natural_order_without_repetition(touch):
    touch("in/img10.png", "in/img2.PNG", "in/img1.jpg", "in/notes.txt", "in/sub/img3.tif", "in/out/labels/img1.png")
    touch("in/[x].webp", "in/film.mp4")

    def listed(*entries, **options):
        return [os.path.relpath(file.path, "in") for file in list_inputs(entries, leave_out=["in/out"], **options)]

    flat = ["[x].webp", "film.mp4", "img1.jpg", "img2.PNG", "img10.png"]
    assert listed("in") == flat
    assert listed("in", recursive=True) == [*flat, os.path.join("sub", "img3.tif")]
    assert listed("in/img*.*") == flat[2:]
    assert listed("in/**/*.tif") == [os.path.join("sub", "img3.tif")]
    assert listed("in/[x].webp") == flat[:1]
    assert listed("in/img2.PNG", "in") == ["img2.PNG", "[x].webp", "film.mp4", "img1.jpg", "img10.png"]
    assert listed("in/notes.txt") == ["notes.txt"]  # named by itself, so tried
    assert list_inputs("in/notes.txt") == [InputFile("in/notes.txt", "notes")]
    assert list_inputs(["demo://0/1/image.png"]) == [InputFile("demo://0/1/image.png", "image")]


@pytest.mark.parametrize("entry", ["nothing_*.png", "empty", "gone.png"])
def test_an_entry_without_files_is_refused(touch, entry):
    touch("a.png", "empty/notes.txt")
    with pytest.raises(ValueError, match=entry.replace("*", r"\*")):
        list_inputs(["a.png", entry])


def test_microscopes_own_files_are_left_out_with_the_remedy(touch, caplog):
    touch("in/a.png", "in/b.ND2", "in/notes.txt")
    assert [file.path for file in list_inputs(["in"])] == [os.path.join("in", "a.png")]
    assert "left out, as their names are not of images or videos: .ND2 (1), .txt (1)" in caplog.messages[0]
    assert "Save it as OME-TIFF" in caplog.messages[0]


def test_sub_folders_are_kept(touch):
    touch("in/b/x.png", "in/a/b/x.png", "in/x.png")
    assert names_of("in", recursive=True) == ["a/b/x", "b/x", "x"]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["x/cell.png", "x/cell.tif", "x/cell.b.png"], ["cell", "cell_tif", "cell.b"]),
        (["x/cell.png", "y/cell.png", "z/y/cell.png"], ["cell", "y_cell", "z_y_cell"]),
        (["x/Cell.png", "y/cell.png"], ["Cell", "y_cell"]),
        (["x/cell_tif.png", "x/cell.png", "x/cell.tif"], ["cell_tif", "cell", "cell_2"]),
        (["x/s_p0001.png", "x/s.tif"], ["s_p0001", "x_s"]),
        (["x/s.tif", "x/s_p0001.png", "x/s_p1.png"], ["s", "s_p0001_png", "s_p1"]),
        (["x/s_p0001.png", "x/s_p0002.png", "x/s.png"], ["s_p0001", "s_p0002", "s"]),
    ],
)
def test_equal_names_are_told_apart(touch, files, names):
    touch(*files)
    found = names_of(*files)
    if files == ["x/s.tif", "x/s_p0001.png", "x/s_p1.png"]:  # a page of s.tif would have the name
        assert found[1] not in ("s", "s_p0001")
        assert [found[0], found[2]] == ["s", "s_p1"]
    else:
        assert found == names


def test_names_within_sub_folders_are_told_apart(touch):
    touch("in/a/x.png", "in/a/x.jpg", "in/film.mp4", "in/film/frame_000001.png", "more/a/x.png")
    found = names_of("in", "more", recursive=True)
    assert found[:2] == ["a/x", "a/x_png"]
    assert found[4] == "a/a_x"
    assert len(set(found)) == 5
    assert "film/frame_000001" not in found or "film" not in found


def test_long_names_are_cut_and_stay_different(touch):
    files = [f"in/{'é' * 100}{k}{'x' * 40}.png" for k in (1, 2)]
    touch(*files)
    found = names_of("in")
    assert len(set(found)) == 2
    assert all(len(os.fsencode(name)) <= 200 for name in found)


def test_many_files_of_one_name(touch):
    touch(*(f"{k}/x.png" for k in range(30)), *(f"{k}/a/x.tif" for k in range(30)))
    found = names_of("*/x.png", "*/a/x.tif")
    assert len({name.lower() for name in found}) == 60
