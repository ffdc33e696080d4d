"""CVAT's shapes: as drawn by hand, and what is refused by file, image and shape."""

import hotcoco
import numpy as np
import pytest
from annotation_folders import masks_of, read_one, rectangle, write_image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import ReadOptions, read, sniff

POLYGON = '<polygon label="cell" points="6,4;30,4;30,20;6,20"/>'


def write(root, shapes, size='width="60" height="40"'):
    write_image(root / "images" / "one.png")
    text = f'<annotations><version>1.1</version><image id="0" name="one.png" {size}>{shapes}</image></annotations>'
    (root / "annotations.xml").write_text(text)
    return root


@pytest.mark.parametrize(
    ("shapes", "mask"),
    [
        (POLYGON, rectangle(6, 4, 30, 20)),
        ('<polyline label="cell" points="6,4;30,4;30,20;6,20;6,4"/>', rectangle(6, 4, 30, 20)),
        (
            '<mask label="cell" rle="1,2,3" left="6" top="4" width="3" height="2"/>',
            rectangle(7, 4, 9, 5),
        ),
        (
            '<mask label="cell" rle="0,3,2,1" left="6" top="4" width="3" height="2"/>',
            rectangle(6, 4, 9, 5) | rectangle(8, 5, 9, 6),
        ),
    ],
)
def test_shapes_are_the_pixels_drawn_by_hand(tmp_path, shapes, mask):
    record, data = read_one(write(tmp_path, shapes))
    assert sniff(tmp_path) == ["cvat"]
    assert not data.problems
    np.testing.assert_array_equal(masks_of(record)[0], mask)


def test_polygons_are_those_that_hotcoco_reads(tmp_path):
    other = POLYGON.replace("cell", "dust").replace("6,4", "6.5,4.25")
    record, data = read_one(write(tmp_path, POLYGON + other))
    read_by_it = hotcoco.COCO.from_cvat(str(tmp_path / "annotations.xml"))
    names = {entry["id"]: entry["name"] for entry in read_by_it.dataset["categories"]}
    expected = [(names[each["category_id"]], each["segmentation"]) for each in read_by_it.dataset["annotations"]]
    assert [(data.class_names[each["category_id"]], each["segmentation"]) for each in record["annotations"]] == expected


def test_an_ellipse(tmp_path):
    record, _ = read_one(write(tmp_path, '<ellipse label="cell" cx="30" cy="20" rx="20" ry="10"/>'))
    y, x = np.mgrid[:40, :60] + 0.5
    disk = ((x - 30) / 20) ** 2 + ((y - 20) / 10) ** 2 <= 1
    mask = masks_of(record)[0]
    assert (mask & disk).sum() / (mask | disk).sum() > 0.95


def test_a_subset_is_a_split(tmp_path):
    write(tmp_path, POLYGON, 'width="60" height="40" subset="Validation"')
    assert list(read(tmp_path).splits) == ["val"]


def test_subsets_of_a_project_may_have_images_of_one_name(tmp_path):
    images = [write_image(tmp_path / "images" / subset / "one.png", 40, 60 + k) for k, subset in enumerate("ab")]
    elements = [f'<image id="{k}" name="one.png" subset="{subset}">{POLYGON}</image>' for k, subset in enumerate("ab")]
    (tmp_path / "annotations.xml").write_text(f"<annotations>{''.join(elements)}</annotations>")
    data = read(tmp_path)
    assert [record["file_name"] for record in data.splits["all"]] == list(map(str, images))
    assert not data.problems


def test_no_shapes_are_a_negative(tmp_path):
    assert read_one(write(tmp_path, ""))[0]["annotations"] == []


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ('<polygon label="cell" points=""/>', "its points are"),
        ('<polygon points="1,1;2,2"/>', "no label"),
        ('<blob label="cell"/>', "not understood"),
        ('<mask label="cell" rle="1,2" left="6" top="4" width="3" height="2"/>', "add up"),
        ('<mask label="cell" rle="1,5" left="inf" top="4" width="3" height="2"/>', "infinity"),
        ('<mask label="cell" rle="1,5" left="59" top="4" width="3" height="2"/>', "not within"),
    ],
)
def test_a_shape_without_mask_is_named(tmp_path, shape, said):
    record, data = read_one(write(tmp_path, POLYGON + shape))
    assert len(record["annotations"]) == 1
    assert said in data.problems[0]
    assert "image 'one.png', shape 1" in data.problems[0]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ('<polyline label="cell" points="1,1;20,2;40,1"/>', "an open line"),
        ('<points label="cell" points="1,1"/>', "a point"),
        ('<tag label="cell"/>', "a tag of the whole image"),
        ('<polygon label="cell" points="1,1;2,2"/>', "a polygon of 2 points"),
        ('<polygon label="cell" points="1,1;2,2;3,3"/>', "without area"),
    ],
)
def test_what_has_no_area_is_left_out_beside_masks(tmp_path, shape, said):
    record, data = read_one(write(tmp_path, POLYGON + shape))
    assert len(record["annotations"]) == 1
    assert not data.problems
    assert any(said in note and "one.png" in note for note in data.notes)
    with pytest.raises(DataError, match="no object has a mask"):
        read(write(tmp_path, shape))


def test_boxes_are_said_beside_masks_and_refused_without(tmp_path):
    box = '<box label="cell" rotation="90" xtl="12" ytl="4" xbr="36" ybr="20"/>'
    record, data = read_one(write(tmp_path, POLYGON + box))
    np.testing.assert_array_equal(masks_of(record)[1], rectangle(16, 0, 32, 24))
    assert any("1 of 2 objects are drawn as boxes" in note for note in data.notes)
    with pytest.raises(DataError, match="all 1 objects are boxes"):
        read(write(tmp_path, box))


def test_an_attribute_names_the_class(tmp_path):
    shape = POLYGON.replace("/>", '><attribute name="kind">NA</attribute></polygon>')
    assert read(write(tmp_path, shape)).class_names == ["cell"]
    assert read(tmp_path, options=ReadOptions(attribute="kind")).class_names == ["NA"]
    assert "no attribute 'size'" in read(tmp_path, options=ReadOptions(attribute="size")).problems[0]


def test_another_size_is_named(tmp_path):
    assert "140 high" in read(write(tmp_path, POLYGON, 'width="60" height="140"')).problems[0]
    mask = '<mask label="cell" rle="0,1000000000000" left="0" top="0" width="1000000" height="1000000"/>'
    assert "1000000 x 1000000" in read(write(tmp_path, mask, 'width="1000000" height="1000000"')).problems[0]


@pytest.mark.parametrize(
    "text",
    [
        "<annotations><image>",
        '<!DOCTYPE a [<!ENTITY e "x">]><annotations><image name="&e;"/></annotations>',
        '<annotations><track id="0" label="cell"/></annotations>',
        '<annotations><track id="0" label="cell"><polygon frame="3" points="1,1;5,1;5,5"/></track></annotations>',
    ],
)
def test_files_that_are_refused(tmp_path, text):
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=r"annotations\.xml"):
        read(tmp_path, "cvat")


def write_video(root, tracks, names, meta="<meta><task><size>{}</size></task></meta>"):
    """A film of `names`, in which tracks of polygons are given as {frame: "points", or None where it is outside}."""
    for name in names:
        write_image(root / "images" / name)
    text = ""
    for number, track in enumerate(tracks):
        text += f'<track id="{number}" label="cell" source="manual">'
        for frame, points in track.items():
            outside = int(points is None)
            text += f'<polygon frame="{frame}" keyframe="1" outside="{outside}" points="{points or "0,0;1,0;1,1"}"/>'
        text += "</track>"
    (root / "annotations.xml").write_text(f"<annotations>{meta.format(len(names))}{text}</annotations>")
    return root


SQUARE, BESIDE = "6,4;30,4;30,20;6,20", "8,4;32,4;32,20;8,20"


@pytest.mark.parametrize("names", [[f"frame_{k:06d}.PNG" for k in range(4)], ["a.png", "b.png", "c.png", "d.png"]])
def test_tracks_of_a_video_are_the_objects_of_its_frames(tmp_path, names):
    """Frames by the number in their names, or in their order; one without objects is an image without objects."""
    data = read(write_video(tmp_path, [{0: SQUARE, 1: BESIDE, 2: None}, {1: SQUARE, 2: None}], names))
    assert sniff(tmp_path) == ["cvat"]
    assert not data.problems
    assert data.class_names == ["cell"]
    records = data.splits["all"]
    assert [record["file_name"].rpartition("/")[2] for record in records] == names
    first, second = rectangle(6, 4, 30, 20), rectangle(8, 4, 32, 20)
    for record, masks in zip(records, ([first], [second, first], [], []), strict=True):
        assert len(record["annotations"]) == len(masks)
        for found, mask in zip(masks_of(record), masks, strict=False):
            np.testing.assert_array_equal(found, mask)


def test_videos_of_a_project_are_to_be_exported_one_by_one(tmp_path):
    root = write_video(tmp_path, [{0: SQUARE, 1: None}, {0: BESIDE, 1: None}], ["frame_000000.PNG"])
    text = (root / "annotations.xml").read_text()
    for number in range(2):
        text = text.replace(f'<track id="{number}"', f'<track id="{number}" task_id="{number}" subset="Train"')
    (root / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=r"annotations\.xml is of a project of 2 videos.*CVAT for images"):
        read(root)


def test_frames_between_key_frames_are_left_out_and_it_is_said(tmp_path):
    names = [f"frame_{k:06d}.png" for k in range(5)]
    data = read(write_video(tmp_path, [{0: SQUARE, 3: BESIDE, 4: None}], names))
    assert [record["file_name"][-5] for record in data.splits["all"]] == ["0", "3", "4"]
    assert any("2 frames between key frames" in note and "frame_000001.png" in note for note in data.notes)


@pytest.mark.parametrize(
    ("start", "shift"), [("", 0), ("<start_frame>0</start_frame>", 0), ("<start_frame>1</start_frame>", 1)]
)
def test_frames_that_are_numbered_from_one_are_in_their_order(tmp_path, start, shift):
    """CVAT counts from 0, and ffmpeg, by which people take a film apart, from 1."""
    meta = "<meta><task><size>{}</size>" + start + "</task></meta>"
    data = read(write_video(tmp_path, [{1: SQUARE, 2: None}], ["f_1.png", "f_2.png", "f_3.png"], meta))
    assert [len(record["annotations"]) for record in data.splits["all"]] == ([1, 0, 0] if shift else [0, 1, 0])


def test_frames_that_are_not_there_are_missing(tmp_path):
    track = dict.fromkeys(range(5), SQUARE)
    data = read(write_video(tmp_path, [track], [f"frame_{k:06d}.png" for k in (0, 1, 4, 6)]))
    assert data.missing == [f"frame {frame} of {tmp_path / 'annotations.xml'}" for frame in (2, 3)]
    assert [len(record["annotations"]) for record in data.splits["all"]] == [1, 1, 1, 0]


def test_shapes_without_a_frame_are_named(tmp_path):
    root = write_video(tmp_path, [{0: SQUARE, 1: SQUARE}], ["frame_000000.png", "frame_000001.png"])
    text = (root / "annotations.xml").read_text()
    for number in ("x", "-2", "99999999999999999999", ""):
        (root / "annotations.xml").write_text(text.replace('frame="1"', f'frame="{number}"'))
        data = read(root)
        assert any("annotations.xml, track 0: a polygon has no frame" in problem for problem in data.problems)
        assert len(data.splits["all"][0]["annotations"]) == 1


def test_a_video_without_its_frames_is_named_with_the_remedy(tmp_path):
    write_video(tmp_path, [{7: SQUARE, 8: None}], ["frame_000000.png"])
    with pytest.raises(
        DataError, match=r"annotations\.xml is of a video, and the image of frame 7 is not there.*Save images"
    ):
        read(tmp_path, "cvat")
