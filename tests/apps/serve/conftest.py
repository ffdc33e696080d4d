"""What the tests of the server share."""

import pytest
from served_models import make_predictor, serving


@pytest.fixture
def predictor():
    """A model that finds an object for each grey value."""
    return make_predictor()


@pytest.fixture
def client(predictor):
    """A client of a server of it."""
    with serving(predictor) as (client, _):
        yield client
