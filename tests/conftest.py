"""What all tests share."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(scope="module", autouse=True)
def _data_sets_are_forgotten():
    """Rooms register data sets of the same names with other sizes."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)
