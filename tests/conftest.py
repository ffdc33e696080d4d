"""What all tests share."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_remembered_of_other_runs(tmp_path_factory):
    """What the data check remembers lies in a folder of this run, also in processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKRCNN_PLUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def _data_sets_are_forgotten():
    """Rooms register data sets of the same names with other sizes."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)
