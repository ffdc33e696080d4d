"""The tables of tools/benchmark.py tracking and stream, on little."""

import re

import cv2
import numpy as np
import pytest
from benchmarks import films
from small_models import small_config


def test_each_tracker_is_scored_on_the_same_films(monkeypatch, capsys):
    pytest.importorskip("trackers")
    monkeypatch.setattr(
        films, "FILMS", {"two": {"count": 2, "height": 64, "width": 64, "divisions": 0.0, "speed": 0.5}}
    )
    films.benchmark_tracking(num_films=1, num_frames=6)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:3] for row in rows] == [["two", each, name] for each in films.DETECTIONS for name in films.TRACKERS]
    for _, detections, name, idf1, switches, tracks, _ in rows:
        if detections == "perfect" and name.startswith("masks"):
            assert (idf1, switches, tracks) == ("1.000", "0", "2 (2)")
        assert 0.5 < float(idf1) <= 1


def test_frames_a_second_of_a_model(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.jpg"), np.full((30, 40, 3), 90, dtype=np.uint8))
    films.benchmark_stream(small_config("nuclei/mask_rcnn_lite0_fpn"), None, str(tmp_path), (48, 64), rounds=0.05)
    assert re.search(
        r"frames of 48 x 64, [\d.]+ objects a frame: [\d.]+ frames a second, [\d.]+ a second of",
        capsys.readouterr().out,
    )
