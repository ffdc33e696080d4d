"""Files of every text format with something broken in them: read as far as they go, or named in an error."""

import copy
import json
import random

import pytest
from annotation_folders import write_image

from maskrcnn_plus.data.check import DataError, check_dataset
from maskrcnn_plus.data.formats import read

VALUES = (None, [], {}, "", "x", -1, 0, 1e308, float("nan"), 2**70, True, [[]], [None], {"a": 1}, "\0", "../../x")
SQUARE = [[6, 4], [30, 4], [30, 20], [6, 20]]
NUMBERS = [6, 4, 30, 4, 30, 20, 6, 20]
RESULT = {
    "id": "a",
    "type": "polygonlabels",
    "from_name": "label",
    "original_width": 60,
    "original_height": 40,
    "value": {"points": SQUARE, "polygonlabels": ["cell"]},
}
BRUSH = {**RESULT, "id": "b", "value": {"rle": [0, 0, 37, 128, 57, 27], "brushlabels": ["cell"]}}
JSON = {
    "coco": (
        "one.json",
        {
            "images": [{"id": 1, "file_name": "one.png", "height": 40, "width": 60}],
            "categories": [{"id": 1, "name": "cell", "supercategory": "x"}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [NUMBERS], "bbox": [6, 4, 24, 16]},
                {
                    "id": 2,
                    "image_id": 1,
                    "category_id": 1,
                    "iscrowd": 1,
                    "segmentation": {"size": [40, 60], "counts": [100, 20, 2280]},
                    "bbox": [2, 20, 1, 20],
                },
            ],
        },
    ),
    "labelme": (
        "one.json",
        {
            "imagePath": "one.png",
            "imageData": None,
            "imageHeight": 40,
            "imageWidth": 60,
            "shapes": [
                {"label": "cell", "points": SQUARE, "shape_type": "polygon", "group_id": 1},
                {"label": "cell", "points": SQUARE[:2], "shape_type": "circle", "group_id": 1},
                {"label": "cell", "points": SQUARE[:2], "shape_type": "mask", "mask": "iVBORw0KGgo="},
            ],
        },
    ),
    "via": (
        "one.json",
        {
            "one.png1": {
                "filename": "one.png",
                "regions": [
                    {
                        "shape_attributes": {
                            "name": "polygon",
                            "all_points_x": NUMBERS[::2],
                            "all_points_y": NUMBERS[1::2],
                        },
                        "region_attributes": {"kind": "cell"},
                    },
                    {
                        "shape_attributes": {"name": "ellipse", "cx": 9, "cy": 9, "rx": 4, "ry": 5, "theta": 1},
                        "region_attributes": {"kind": "cell", "other": {"a": True}},
                    },
                ],
            }
        },
    ),
    "label_studio": (
        "one.json",
        [{"id": 1, "data": {"image": "one.png"}, "annotations": [{"result": [RESULT, BRUSH]}]}],
    ),
    "supervisely": (
        "ann/one.png.json",
        {
            "size": {"height": 40, "width": 60},
            "tags": [],
            "objects": [
                {
                    "classTitle": "cell",
                    "geometryType": "polygon",
                    "points": {"exterior": SQUARE, "interior": [SQUARE[:3]]},
                },
                {"classTitle": "cell", "geometryType": "bitmap", "bitmap": {"data": "eJw=", "origin": [1, 1]}},
            ],
        },
    ),
    "cityscapes": (
        "one_gtFine_polygons.json",
        {"imgHeight": 40, "imgWidth": 60, "objects": [{"label": "car", "polygon": SQUARE}]},
    ),
    "qupath": (
        "one.geojson",
        {
            "type": "FeatureCollection",
            "features": [
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [[*SQUARE, SQUARE[0]], SQUARE[:3]]},
                    "properties": {"classification": {"name": "cell"}},
                },
            ],
        },
    ),
}
VERTICES = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in SQUARE)
TEXT = {
    "cvat": (
        "one.xml",
        '<annotations><image name="one.png" width="60" height="40"><polygon label="cell" points="6,4;30,4;30,20"/>'
        '<mask label="cell" rle="1,2,3" left="6" top="4" width="3" height="2"/><ellipse label="cell" cx="9" cy="9" '
        'rx="4" ry="5" rotation="20"/></image></annotations>',
    ),
    "aperio": (
        "one.xml",
        f'<Annotations><Annotation Id="1" Name="x"><Regions><Region Type="0"><Vertices>{VERTICES}</Vertices></Region>'
        f'<Region NegativeROA="1"><Vertices>{VERTICES}</Vertices></Region></Regions></Annotation></Annotations>',
    ),
    "yolo": ("one.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n1 0.2 0.2 0.4 0.2 0.4 0.4\n"),
    "via": (
        "one.csv",
        "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
        'one.png,1,"{}",1,0,"{""name"":""circle"",""cx"":9,""cy"":9,""r"":4}","{""kind"":""cell""}"\n',
    ),
    **{name: (file, json.dumps(content)) for name, (file, content) in JSON.items() if name != "via"},
}


def places(content, path=()):
    """Paths of all values in a content."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changed(content, path, value):
    """The content with another value at a path; without the key where it is `...`."""
    if not path:
        return value
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


def read_or_name(root, name, file):
    """Read a folder; whatever is wrong with it is a DataError, a problem or a note."""
    try:
        data = read(root, name)
        for records in data.splits.values():
            check_dataset(records, on_error="skip", num_classes=len(data.class_names))
    except DataError as error:
        assert str(root) in str(error) or file in str(error) or "No usable" in str(error)  # noqa: PT017
        return 0
    return 1


def prepare(root, name):
    write_image(root / ("img/one.png" if name == "supervisely" else "one.png"))
    (root / "classes.txt").write_text("cell\ndust\n")
    (root / "ann").mkdir(exist_ok=True)


@pytest.mark.parametrize("name", JSON)
def test_json_with_other_values(tmp_path, name):
    file, content = JSON[name]
    prepare(tmp_path, name)
    rng = random.Random(0)
    spots = list(places(content))
    read_count = 0
    for path in spots:
        for value in (*rng.sample(VALUES, 3), *([...] if path else [])):
            (tmp_path / file).write_text(json.dumps(changed(content, path, value)))
            read_count += read_or_name(tmp_path, name, file)
    assert read_count > len(spots)  # most of it is still read


@pytest.mark.parametrize("name", TEXT)
def test_text_that_is_cut_or_has_other_characters(tmp_path, name):
    file, text = TEXT[name]
    prepare(tmp_path, name)
    rng = random.Random(0)
    content = text.encode()
    (tmp_path / file).write_bytes(content)
    assert read_or_name(tmp_path, name, file) == 1
    read_count = 0
    for _ in range(40):
        place = rng.randrange(len(content))
        broken = rng.choice(
            [content[:place], content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :], content[place:]]
        )
        (tmp_path / file).write_bytes(broken)
        read_count += read_or_name(tmp_path, name, file)
    assert read_count < 40  # some of it cannot be read, and is named
