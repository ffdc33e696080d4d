"""The load that tools/benchmarks/serving.py puts on a server."""

from benchmarks.serving import put_load
from served_models import draw, listening, make_predictor, png


def test_clients_that_are_refused_try_again_until_all_are_answered():
    with listening(make_predictor(), max_waiting=2) as (url, service):
        service.worker._seconds = 0.0
        load = put_load(url, [png(draw()), png(draw(1))], requests=30, clients=4)
        assert load.statuses == {200: 30}
        assert len(load.seconds) == 30
        assert len(load.memory) == 1 + 10
        load = put_load(url, [b"no image"], requests=3, clients=2)
        assert load.statuses == {400: 3}
        assert "400" in next(load.lines())
