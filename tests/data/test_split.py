"""Splits that folders lack: groups stay whole, classes are in both parts, and nothing but names and seed decides."""

import itertools
import random

import pytest

from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.data.formats.files import WHOLE
from maskrcnn_plus.data.learned_images import image_key
from maskrcnn_plus.data.split import choose_validation, train_and_val


def records(classes, name="{:03d}.png"):
    """An image for each list of categories."""
    return [
        {"file_name": name.format(index), "annotations": [{"category_id": category} for category in found]}
        for index, found in enumerate(classes)
    ]


@pytest.mark.parametrize(("count", "val", "wanted"), [(10, 0.2, 2), (2, 0.2, 1), (3, 0.9, 2), (57, 0.25, 14)])
def test_as_many_images_as_wanted_and_always_one_for_training(count, val, wanted):
    assert len(choose_validation(records([[0]] * count), val)) == wanted


def test_groups_stay_together():
    groups = [index // 7 for index in range(70)]
    chosen = choose_validation(records([[0]] * 70), 0.2, groups=groups)
    assert len(chosen) == 14
    assert all(len({index in chosen for index in range(first, first + 7)}) == 1 for first in range(0, 70, 7))


def test_one_group_is_parted_in_the_order_of_its_frames_and_says_so():
    frames = records([[0]] * 60, name="frame{}.png")  # frame10 comes after frame9
    random.Random(0).shuffle(frames)
    splits, notes = train_and_val({WHOLE: frames}, groups=lambda entries: [3] * len(entries))
    numbers = sorted(int(record["file_name"][5:-4]) for record in splits["val"])
    assert len(numbers) == 12
    assert sum(after - before > 1 for before, after in itertools.pairwise(numbers)) <= 1  # two parts of six frames
    assert "belong together" in notes[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_is_in_both_parts(seed):
    data = records([[0, 0, 1]] * 3 + [[0]] * 57 + [[2]] * 4)
    chosen = choose_validation(data, 0.2, seed)
    for category in range(3):
        found = [index for index, entry in enumerate(data) if {"category_id": category} in entry["annotations"]]
        assert 0 < len(set(found) & set(chosen)) < len(found)


def test_the_draw_depends_on_names_and_seed_alone():
    data = records([[0]] * 30)
    shuffled = random.Random(1).sample(data, 30)

    def names(entries, seed):
        return {entries[index]["file_name"] for index in choose_validation(entries, 0.3, seed)}

    assert names(data, 0) == names(shuffled, 0)
    assert names(data, 0) != names(data, 1)


@pytest.mark.parametrize("seed", range(3))
def test_images_that_weights_know_stay_in_their_part(seed):
    before, notes = train_and_val({WHOLE: records([[0]] * 20)}, seed=seed)
    learned = {image_key(each): part for part in ("train", "val") for each in before[part]}
    grown = records([[0]] * 20) + records([[0]] * 30, name="new{:03d}.png")
    # The last two new images belong to one that was learned from, and to one by which the weights were judged.
    groups = [*range(48), *(grown.index(before[part][0]) for part in ("train", "val"))]
    splits, notes = train_and_val({WHOLE: grown}, seed=seed, groups=lambda entries: groups, learned=learned)
    of = {each["file_name"]: part for part in ("train", "val") for each in splits[part]}
    assert len(of) == 50
    assert all(of[each["file_name"]] == part for part in ("train", "val") for each in before[part])
    assert (of["new028.png"], of["new029.png"]) == ("train", "val")
    assert sum(of[f"new{index:03d}.png"] == "val" for index in range(28)) == 6
    assert "20 images: 4 by which they were judged" in notes[-1]
    assert "Of 30 images that are new to them 7 are for validation" in notes[-1]


def test_weights_that_learned_from_all_images_are_said_to_know_them():
    data = records([[0]] * 10)
    learned = {image_key(each): "train" for each in data}
    drawn, notes = train_and_val({WHOLE: data}, learned=learned)
    assert drawn == train_and_val({WHOLE: data})[0]
    assert "have learned from 2 of the 2 validation images" in notes[-1]
    assert "learned from 1 of the 1" in train_and_val({"train": data[:9], "val": data[9:]}, learned=learned)[1][-1]


def test_splits_that_are_there_are_kept():
    given = {"train": records([[0]] * 4), "val": records([[0]]), "test": records([[0]] * 2)}
    splits, notes = train_and_val(given, val=0.9)
    assert splits == given
    assert notes == []


def test_the_only_split_is_divided_and_named():
    splits, notes = train_and_val({"test": records([[0]] * 10)})
    assert {name: len(entries) for name, entries in splits.items()} == {"train": 8, "val": 2}
    assert any("only the split test" in note for note in notes)


def test_images_of_no_split_are_for_training():
    given = {WHOLE: records([[0]] * 3), "train": records([[0]] * 4), "val": records([[0]])}
    splits, notes = train_and_val(given)
    assert {name: len(entries) for name, entries in splits.items()} == {"train": 7, "val": 1}
    assert any("3 images are of no split" in note for note in notes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "No usable image"),
        ({"train": []}, "No usable image"),
        ({"val": records([[0]]), "test": records([[0]])}, "no train"),
    ],
)
def test_what_cannot_be_split_is_named(given, message):
    with pytest.raises(DataError, match=message):
        train_and_val(given)


def test_nothing_is_drawn_when_nothing_is_wanted():
    assert set(train_and_val({WHOLE: records([[0]] * 10)}, val=0)[0]) == {"train"}
