"""Aperio's regions and holes: as drawn by hand."""

import numpy as np
import pytest
from annotation_folders import masks_of, read_one, rectangle, write_image

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats import read, sniff


def region(x0, y0, x1, y1, hole=0, kind=0):
    corners = [(x0, y0), (x1, y1)] if kind == 2 else [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
    return f'<Region Id="1" Type="{kind}" NegativeROA="{hole}"><Vertices>{vertices}</Vertices></Region>'


def layer(*regions, name="NA"):
    return f'<Annotation Id="1" Name="{name}"><Attributes/><Regions>{"".join(regions)}</Regions></Annotation>'


def write(root, *layers):
    write_image(root / "one.png")
    (root / "one.xml").write_text(f'<Annotations MicronsPerPixel="0.25">{"".join(layers)}</Annotations>')
    return root


def test_a_hole_is_cut_out_of_the_smallest_region_around_it(tmp_path):
    shapes = [region(2, 2, 58, 38), region(6, 4, 30, 20), region(10, 8, 20, 12, hole=1), region(50, 2, 54, 6)]
    record, data = read_one(write(tmp_path, layer(*shapes)))
    assert sniff(tmp_path) == ["aperio"]
    assert data.class_names == ["NA"]
    assert not data.problems
    expected = [
        rectangle(2, 2, 58, 38),
        rectangle(6, 4, 30, 20) & ~rectangle(10, 8, 20, 12),
        rectangle(50, 2, 54, 6),
    ]
    np.testing.assert_array_equal(masks_of(record), expected)


def test_names_ellipses_and_what_has_no_area(tmp_path):
    first = layer(region(10, 10, 50, 30, kind=2), region(1, 1, 5, 5, kind=4), name="")
    record, data = read_one(write(tmp_path, first, layer(region(6, 4, 30, 20), region(40, 5, 45, 9, hole=1))))
    assert data.class_names == ["object", "NA"]
    y, x = np.mgrid[:40, :60] + 0.5
    disk = ((x - 30) / 20) ** 2 + ((y - 20) / 10) ** 2 <= 1
    mask = masks_of(record)[0]
    assert (mask & disk).sum() / (mask | disk).sum() > 0.95
    for said in ("an arrow or ruler", "lie in no region", "without a name"):
        assert any(said in note for note in data.notes)
    assert read_one(write(tmp_path, layer()))[0]["annotations"] == []


@pytest.mark.parametrize(("attribute", "name"), [("Description", "object"), ("Epithelial", "Epithelial")])
def test_an_attribute_names_the_class_unless_it_is_the_one_of_every_layer(tmp_path, attribute, name):
    """MoNuSAC writes the class into the name of an attribute, MoNuSeg leaves ImageScope's there."""
    attributes = f'<Attributes><Attribute Name="{attribute}" Id="0" Value=""/></Attributes>'
    write(tmp_path, layer(region(6, 4, 30, 20), name="").replace("<Attributes/>", attributes))
    assert read(tmp_path).class_names == [name]


def test_an_image_whose_regions_are_all_unusable_is_no_negative(tmp_path):
    data = read(write(tmp_path, layer(), layer(region(1, 1, "x", 5))))
    assert not any(data.splits.values())
    assert any("no object could be used" in note for note in data.notes)


def test_boxes_alone_are_refused(tmp_path):
    with pytest.raises(DataError, match="boxes"):
        read(write(tmp_path, layer(region(6, 4, 30, 20, kind=1))))


def test_what_is_wrong_is_named(tmp_path):
    data = read(write(tmp_path, layer(region(6, 4, 30, 20), region(1, 1, "x", 5))))
    assert "one.xml, annotation 1, shape 1: its points are" in data.problems[0]
    (tmp_path / "one.png").unlink()
    assert "1 of 1 images" in read(tmp_path).problems[0]
    for text in ("<Annotations><Annotation>", '<!DOCTYPE a [<!ENTITY e "x">]><Annotations><Annotation Name="&e;"/>'):
        (tmp_path / "one.xml").write_text(text)
        with pytest.raises(DataError, match=r"one\.xml"):
            read(tmp_path, "aperio")
