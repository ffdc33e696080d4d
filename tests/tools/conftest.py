"""What the tests of the tools share."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(scope="module", autouse=True)
def _data_sets_are_forgotten():
    """The demo's names are taken by sets of other sizes in other rooms' tests."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
