"""What runs on a GPU where there is one: `make test-gpu`."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Mark all tests of this folder, and skip them where there is no GPU."""
    skip = pytest.mark.skip(reason="no CUDA device is available here")
    for item in items:
        if "/cuda/" in item.nodeid:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _float32_is_float32():
    """Comparisons are of float32, not of TensorFloat-32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def no_sync():
    """A context in which an operation that waits for the GPU is an error."""

    class NoSync:
        def __enter__(self):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    return NoSync()
