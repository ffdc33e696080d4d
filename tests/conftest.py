"""What all tests share."""

import logging

import pytest
import shipped_nuclei
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from maskrcnn_plus import zoo
from maskrcnn_plus.ops import extension, nms, paste_masks_rle, roi_align_rules, winograd

FALLBACKS = {
    "roi_align": roi_align_rules.forward_fallback,
    "roi_align_backward": roi_align_rules.backward_fallback,
    "batched_nms": nms.nms_group_by_group,
    "paste_masks_rle": paste_masks_rle.paste_by_reference,
    "winograd_conv3x3": winograd.winograd_reference,
    "winograd_conv3x3_backward_weight": winograd.backward_weight_reference,
}


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_remembered_of_other_runs(tmp_path_factory):
    """What the data check remembers lies in a folder of this run, also in processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKRCNN_PLUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_handlers_are_left():
    """Each run in a test adds handlers to the loggers: for its own folder, and for the console of that test."""
    yield
    if hasattr(setup_logger, "cache_clear"):  # in one of the Detectron2s
        setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "maskrcnn_plus"):
        logging.getLogger(name).handlers.clear()


@pytest.fixture
def without_kernels(monkeypatch):
    """The operators as they are on a CPU without the compiled extension."""
    monkeypatch.setattr(extension, "_why_missing", "switched off")
    monkeypatch.setattr(extension, "_warned", True)
    library = torch.library.Library("maskrcnn_plus", "IMPL")
    for name, fallback in FALLBACKS.items():
        library.impl(name, fallback, "CPU", allow_override=True)
    yield
    library._destroy()


@pytest.fixture(params=["compiled", "fallback"])
def _operators(request):
    """The compiled operators, and those that stand in for them."""
    if request.param == "fallback":
        request.getfixturevalue("without_kernels")
    elif not extension.is_available():
        pytest.skip(extension.why_missing())


@pytest.fixture(scope="module", autouse=True)
def _data_sets_are_forgotten():
    """Test modules register data sets of the same names with other sizes."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)


@pytest.fixture
def empty_zoo(tmp_path, monkeypatch):
    """No model is shipped; the folder where one would be."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    (folder / "zoo.json").write_text("{}")
    monkeypatch.setattr(zoo, "FOLDER", folder)
    return folder


@pytest.fixture(scope="session")
def _nuclei_folder(tmp_path_factory):
    return shipped_nuclei.make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def nuclei_zoo(_nuclei_folder, monkeypatch):
    """A small untrained model of nuclei is shipped; the folder that it is in, not to be changed."""
    monkeypatch.setattr(zoo, "FOLDER", _nuclei_folder)
    return _nuclei_folder
