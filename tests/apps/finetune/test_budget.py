"""What fits into the time: sums of steps and evaluations, whatever the machine."""

import pytest

from maskrcnn_plus.apps.finetune import budget
from maskrcnn_plus.apps.finetune.budget import fit_into
from maskrcnn_plus.apps.finetune.plan import Plan
from maskrcnn_plus.apps.finetune.timing import Timing
from maskrcnn_plus.errors import UserError

CROP = "dataloader.train.mapper.mapper.augmentations.0.size"


def fit(seconds, *overrides, step=0.5, image=0.1, num_val=50, size=256, bfloat16=False):
    plan = Plan("common/any_data", ["train.device=cpu", *overrides])
    plan.decide({CROP: size}, "The crop.")
    fit_into(plan, seconds, 400, num_val, lambda cfg: Timing(step, image, bfloat16))
    return plan


@pytest.mark.parametrize(
    ("seconds", "step", "image", "num_val"), [(3600, 0.5, 0.1, 50), (600, 0.2, 0.5, 200), (36000, 1, 3, 9)]
)
def test_training_and_evaluations_fill_the_time_and_no_more(seconds, step, image, num_val):
    plan = fit(seconds, step=step, image=image, num_val=num_val)
    iterations, period = plan.get("train.max_iter"), plan.get("train.eval_period")
    evaluations = -(-iterations // period)
    spent = iterations * step + evaluations * (num_val * image + plan.get("train.validation_loss") * step / 4)
    assert 0.8 * seconds < spent <= seconds
    assert seconds - spent / evaluations < 3600 * plan.get("train.max_hours") < seconds  # the last evaluation after it
    assert 1 <= evaluations <= 10
    assert (evaluations - 1) * period < iterations - period / 2  # none just before that of the end


def test_costly_evaluations_are_few():
    assert fit(3600).get("train.eval_period") < fit(3600, image=2).get("train.eval_period")


def test_large_crops_make_small_batches():
    batches = [fit(3600, size=size).get("dataloader.train.total_batch_size") for size in (128, 256, 448, 640)]
    assert batches == sorted(batches, reverse=True)
    assert (batches[0], batches[-1]) == (4, 2)


def test_what_is_given_stays():
    plan = fit(3600, "train.max_iter=80", "dataloader.train.total_batch_size=3")
    assert plan.get("train.max_iter") == 80
    assert plan.get("train.eval_period") <= 80
    assert plan.get("dataloader.train.total_batch_size") == 3
    assert not plan.get("train.max_hours")


def test_measuring_is_part_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    plan = Plan("common/any_data", ["train.device=cpu"])
    plan.decide({CROP: 256}, "The crop.")

    def measure(cfg):
        now[0] += 600
        return Timing(0.5, 0.1, False)

    fit_into(plan, 3600, 400, 50, measure)
    assert 0.9 * 3000 < 0.5 * plan.get("train.max_iter") < 3000
    assert 3600 * plan.get("train.max_hours") < 3000


def test_too_little_time_is_refused_unless_the_iterations_are_given():
    with pytest.raises(UserError, match=r"minutes are not enough: a step takes 0\.5 s"):
        fit(20)
    assert fit(20, "train.max_iter=5").get("train.max_iter") == 5


def test_the_faster_precision_is_taken():
    assert fit(3600, bfloat16=True).get("train.amp.enabled") is True
    assert fit(3600, bfloat16=False).get("train.amp.enabled") is False


@pytest.mark.parametrize(("hours", "name"), [(1, "0"), (2.5, "1"), (20, "2")])
def test_the_largest_backbone_that_the_time_is_enough_for(monkeypatch, hours, name):
    monkeypatch.setattr(budget.importlib.util, "find_spec", lambda package: object())
    plan = Plan("common/any_data", ["train.device=cpu"])
    plan.decide({CROP: 256}, "The crop.")

    def measure(cfg):
        return Timing(0.5 + 0.3 * int(cfg.model.backbone.bottom_up.name[-1]), 0.1, False)

    fit_into(plan, 3600 * hours, 400, 50, measure)
    assert plan.get("model.backbone.bottom_up.name") == f"tf_efficientnet_lite{name}"


def test_a_backbone_whose_weights_are_not_here_is_not_taken(monkeypatch):
    monkeypatch.setattr(budget.importlib.util, "find_spec", lambda package: None)
    assert fit(1e6).get("model.backbone.bottom_up.name") == "tf_efficientnet_lite0"
