"""Sources of weights: names of torchvision, the cache, refused networks."""

import errno
import os
import urllib.error

import pytest
import torch
from detectron2.utils.file_io import PathManager

from maskrcnn_plus.checkpoints import WeightsError, load_weights
from maskrcnn_plus.checkpoints.sources import local_path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch.hub, and a record of the downloads, all of which fail."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    asked = []

    def download(url, path, hash_prefix=None, progress=True):
        asked.append((url, hash_prefix))
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder, asked


OFFICIAL = {
    "torchvision://maskrcnn_resnet50_fpn": "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    "torchvision://maskrcnn_resnet50_fpn@COCO_V1": "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
    "torchvision://maskrcnn_resnet50_fpn_v2": "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
    "torchvision://fasterrcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    "torchvision://resnet50": "resnet50-11ad3fa6.pth",
    "torchvision://resnet50@IMAGENET1K_V1": "resnet50-0676ba61.pth",
}


@pytest.mark.parametrize("source", OFFICIAL)
def test_official_files_are_found_in_the_cache_or_asked_for_with_their_hash(cache, source):
    folder, asked = cache
    name = OFFICIAL[source]
    with pytest.raises(WeightsError, match=rf"{source}.*no network.*by hand") as caught:
        local_path(source)
    (url, hash_prefix), *others = asked
    assert not others
    assert url.startswith("https://")
    assert url.endswith(name)
    assert hash_prefix == name.split("-")[1].split(".")[0]
    assert url in str(caught.value)
    assert str(folder / name) in str(caught.value)
    (folder / name).write_bytes(b"x")
    assert local_path(source) == str(folder / name)
    assert len(asked) == 1


def test_a_download_goes_to_the_cache(cache, monkeypatch):
    folder, _ = cache
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, *a, **k: open(path, "wb").close())
    path = local_path("torchvision://resnet18")
    assert os.path.dirname(path) == str(folder)
    assert os.path.basename(path).startswith("resnet18-")
    assert os.path.isfile(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision://maskrcnn_resnet50", r"no model 'maskrcnn_resnet50'.*Did you mean maskrcnn_resnet50_fpn"),
        ("torchvision://", "no model ''.*Known: "),
        ("torchvision://resnet50@COCO_V1", r"weights of resnet50 are IMAGENET1K_V1, IMAGENET1K_V2"),
    ],
)
def test_unknown_names_are_refused_with_the_near_ones(cache, source, message):
    with pytest.raises(WeightsError, match=message):
        local_path(source)
    assert cache[1] == []


@pytest.mark.parametrize("error", [urllib.error.URLError("no network"), RuntimeError("no route"), OSError("disk full")])
def test_failed_downloads_name_the_url_and_the_way_out(monkeypatch, error):
    def fail(path, *args, **kwargs):
        raise error

    monkeypatch.setattr(PathManager, "get_local_path", fail)
    with pytest.raises(
        WeightsError, match=r"could not be downloaded.*https://dl\.fbaipublicfiles\.com/detectron2/a/b\.pkl"
    ):
        local_path("detectron2://a/b.pkl")
    with pytest.raises(WeightsError, match=r"https://example\.org/w\.pth by hand"):
        local_path("https://example.org/w.pth")


def test_local_files_stay_and_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pth")
    assert local_path(str(tmp_path / "w.pth")) == str(tmp_path / "w.pth")
    assert load_weights(torch.nn.Linear(2, 2), "~/w.pth", strict=True).fraction == 1
    for missing in ("nowhere.pth", "unknown://w.pth"):
        with pytest.raises(WeightsError, match=missing):
            load_weights(torch.nn.Linear(2, 2), missing)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("source", ["https://example.org/w.pth", "torchvision://resnet18"])
def test_a_full_or_locked_disk_is_named_with_the_folder_and_the_way_out(cache, monkeypatch, source, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(PathManager, "get_local_path", fail)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    folder, variable = (str(cache[0]), "TORCH_HOME") if "torchvision" in source else ("iopath_cache", "FVCORE_CACHE")
    with pytest.raises(WeightsError, match=os.strerror(code)) as caught:
        local_path(source)
    assert folder in str(caught.value)
    assert variable in str(caught.value)
    assert "network" not in str(caught.value)
