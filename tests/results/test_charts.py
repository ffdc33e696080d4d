"""Charts, and curves from a metrics.json that was cut off and damaged."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from maskrcnn_plus.results import charts
from maskrcnn_plus.results.charts import heat_table, line_chart
from maskrcnn_plus.results.training_curves import read_metrics, training_charts


def points(chart, index=0):
    text = re.findall(r'polyline points="([^"]*)"', chart)[index]
    return np.array([[float(value) for value in pair.split(",")] for pair in text.split()])


def test_a_line_goes_from_corner_to_corner():
    chart = line_chart("A < B", {"x & y": ([0, 1, 2], [0.0, 5.0, 10.0]), "empty": ([], [])}, x_label="it")
    assert points(chart).tolist() == [[44, 150], [228, 79], [412, 8]]
    assert "A &lt; B" in chart
    assert "x &amp; y" in chart
    assert "empty" not in chart
    ElementTree.fromstring(chart)


def test_points_that_are_no_numbers_are_left_out_and_long_lines_thinned():
    chart = line_chart("c", {"a": ([0, 1, 2, np.inf], [1, np.nan, 3, 4]), "b": ([1], [2])})
    assert len(points(chart)) == 2
    assert "<circle" in chart  # a single point is seen
    line = np.arange(10_000)
    thinned = points(line_chart("c", {"a": (line, line)}))
    assert len(thinned) <= 400
    assert thinned[-1].tolist() == [412, 8]
    assert line_chart("c", {"a": ([], []), "b": ([1], [np.nan])}) == ""
    ElementTree.fromstring(line_chart("flat", {"a": ([1, 2], [3, 3])}))


def test_a_heat_table_has_all_counts():
    tree = ElementTree.fromstring(heat_table(["a", "<b>"], ["a", "<b>"], np.array([[3, 1], [0, 0]])))
    assert [cell.text for cell in tree.iter("td")] == ["a", "3", "1", "<b>", "0", "0"]
    shades = [cell.get("style") for cell in tree.iter("td") if cell.get("style")]
    assert [int(re.search(r"(\d+)%", shade)[1]) for shade in shades] == [52, 18, 0, 0]


def test_curves_are_those_of_the_file(tmp_path):
    lines = [{"iteration": k, "total_loss": 10.0 - k, "loss_mask": 1.0, "lr": 0.1} for k in range(5)]
    lines += [
        {"iteration": 4, "segm/AP": 12.0, "bbox/AP": None, "val_loss": 3.0, "val_loss_mask": 2.0, "matching/mAP": 0.4}
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n[1]\n{"iteration": "x"}\n{"total_loss": 1}\n{"iteration": 9, "tot'
    (tmp_path / "metrics.json").write_text(text)
    metrics = read_metrics(tmp_path / "metrics.json")
    assert metrics["total_loss"] == ([0, 1, 2, 3, 4], [10, 9, 8, 7, 6])
    assert "bbox/AP" not in metrics
    charts = training_charts(metrics)
    assert len(charts) == 5
    assert "validation" in charts[0]
    assert training_charts({}) == []
    with pytest.raises(OSError, match=r"nothing\.json"):
        read_metrics(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.1163, 0.2506), (4.739, 5.008), (0, 1), (11.76, 11.76), (-3, 120), (0.0012, 0.003), (7, 7000)],
)
def test_axes_hold_the_points_in_steps_of_few_digits(low, high):
    start, end = charts._rounded(low, high)
    assert start <= low + 1e-12
    assert end >= high - 1e-12
    assert end - start <= 3 * max(high - low, 1)
    labels = re.findall(r"<text[^>]*text-anchor=\"end\">([^<]*)</text>", charts._axes((0, 1), (start, end)))
    assert all(len(label.strip("-").replace(".", "").lstrip("0")) <= 4 for label in labels)
