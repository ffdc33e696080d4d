"""Where the classes of data, configs and weights meet: names decide, numbers follow, and what disagrees is refused."""

import json
import logging

import pytest
import torch
from coco_files import category, image, square, write_coco
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from maskrcnn_plus.config import get_config, list_configs
from maskrcnn_plus.data import Classes, checked_dataset, register_coco, register_label_maps, resolve_classes
from maskrcnn_plus.data.check import DataError
from maskrcnn_plus.evaluation import COCOMaskEvaluator
from maskrcnn_plus.overrides import apply_overrides


@pytest.fixture
def unique(request):
    """Names for data sets that no other test has, forgotten afterwards."""
    before = set(DatasetCatalog.list())
    yield lambda name: f"{name}_{request.node.name}"
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def coco_config(tmp_path, unique):
    """The COCO config on two small files: `make(train categories, val categories, overrides, which have objects)`."""

    def make(train, val=None, *overrides, used=None):
        config = get_config("coco/mask_rcnn_r50_fpn")
        for split, categories in (("train", train), ("val", val or train)):
            ids = [c["id"] for c in categories if used is None or c["id"] in used]
            annotations = [square(number, 1, each) for number, each in enumerate(ids, start=1)]
            json_file, root = write_coco(tmp_path, [image(1)], annotations, categories, f"{split}.json")
            config.dataset[split].json, config.dataset[split].images = json_file, root
        config.dataloader.train.dataset.dataset.names.name = unique("train")
        config.dataloader.test.dataset.names.name = unique("val")
        return apply_overrides(config, overrides)

    return make


TWO = [category(1, "cell"), category(2, "dust")]
THREE = [*TWO, category(3, "hair")]


def numbers(config):
    return (config.dataset.num_classes, config.model.roi_heads.num_classes)


def test_numbers_follow_the_data_and_not_the_configs_default(coco_config, caplog):
    config = coco_config(TWO)
    assert numbers(config) == (80, 80)
    assert resolve_classes(config) == Classes(["cell", "dust"], [1, 2])
    assert numbers(config) == (2, 2)
    assert list(config.dataset.thing_classes) == ["cell", "dust"]
    dicts = instantiate(config.dataloader.train.dataset.dataset)
    assert [entry["category_id"] for entry in dicts[0]["annotations"]] == [0, 1]


def test_the_default_holds_for_data_of_just_these_categories(coco_config):
    names = list(get_config("coco/mask_rcnn_r50_fpn").dataset.thing_classes)
    config = coco_config([category(k + 1, name) for k, name in enumerate(names)], used={3, 7})
    assert resolve_classes(config).names == names
    assert numbers(config) == (80, 80)


@pytest.mark.parametrize("overrides", [["dataset.num_classes=2"], ["model.roi_heads.num_classes=2"]], ids=str)
def test_a_number_that_disagrees_is_refused_with_both(coco_config, overrides):
    key, _, number = overrides[0].partition("=")
    with pytest.raises(DataError, match=rf"3 classes of the training data \(cell, dust, hair\), but {key}={number}"):
        resolve_classes(coco_config(THREE, None, *overrides))
    assert resolve_classes(coco_config(TWO, None, *overrides)).names == ["cell", "dust"]


@pytest.mark.parametrize("name", [name for name in list_configs() if not name.startswith(("coco/", "zoo/"))])
def test_given_names_give_all_numbers_of_the_model(name):
    config = apply_overrides(get_config(name), ["dataset.thing_classes=[a,b,c,d,e]"])
    assert resolve_classes(config, splits=()).names == list("abcde")
    found = {}

    def walk(node, path=""):
        items = node.items() if OmegaConf.is_dict(node) else enumerate(node) if OmegaConf.is_list(node) else ()
        for key, value in items:
            if key == "num_classes":
                found[path] = value
            walk(value, f"{path}.{key}")

    walk(config.model.roi_heads)
    assert set(found.values()) == {5}


@pytest.mark.parametrize("name", ["torchvision_mask_rcnn_r50_fpn", "torchvision_mask_rcnn_r50_fpn_v2"])
def test_rows_for_unused_ids_are_of_coco_alone(name):
    config = get_config(f"zoo/{name}")
    assert config.model.roi_heads.box_predictor.num_unused_classes == 10
    config.dataset.thing_classes = ["a", "b"]
    assert config.model.roi_heads.box_predictor.num_unused_classes == 0
    assert config.model.roi_heads.num_classes == 2


def test_a_config_of_its_own_numbers_is_refused_too(tmp_path, unique):
    """Numbers that nothing connects, as in a config that was written by hand."""
    json_file, root = write_coco(tmp_path, [image(1)], [square(0), square(1, 1, 2), square(2, 1, 3)], THREE)
    names = L(register_coco)(name=unique("own"), json_file=json_file, image_root=root)
    config = OmegaConf.create(
        {
            "model": {"roi_heads": {"num_classes": 3, "mask_head": {"num_classes": 2}}},
            "dataloader": {"train": {"dataset": {"dataset": {"names": names}}}},
        },
        flags={"allow_objects": True},
    )
    with pytest.raises(DataError, match=r"model\.roi_heads\.mask_head\.num_classes=2"):
        resolve_classes(config)
    config.model.roi_heads.mask_head.num_classes = 1  # one mask whatever the class
    del config.dataset
    assert resolve_classes(config).names == ["cell", "dust", "hair"]
    assert list(config.dataloader.train.dataset.dataset.names.thing_classes) == ["cell", "dust", "hair"]


def test_dummies_without_objects_are_dropped_and_said(coco_config, caplog):
    """A hosted tool's export: category 0 stands for the project, here under the name of another category."""
    exported = [category(0, "vein"), category(1, "midrib"), category(2, "vein"), category(5, "spare")]
    config = coco_config(exported, used={1, 2})
    assert resolve_classes(config) == Classes(["midrib", "vein"], [1, 2])
    assert "vein (id 0), spare (id 5)" in caplog.text
    dicts = instantiate(config.dataloader.train.dataset.dataset)
    assert [entry["category_id"] for entry in dicts[0]["annotations"]] == [0, 1]


def test_given_names_are_kept_without_objects_and_order_the_rows(coco_config):
    config = coco_config(TWO, None, "dataset.thing_classes=[ghost,Dust,cell]")
    classes = resolve_classes(config)
    assert classes.names == ["ghost", "Dust", "cell"]
    assert classes.category_ids[1:] == [2, 1]
    assert classes.category_ids[0] not in (1, 2)
    dicts = instantiate(config.dataloader.train.dataset.dataset)
    assert [entry["category_id"] for entry in dicts[0]["annotations"]] == [2, 1]


@pytest.mark.parametrize("split", ["train", "val"])
def test_objects_of_other_classes_are_refused(coco_config, split):
    config = coco_config(THREE if split == "train" else TWO, THREE, "dataset.thing_classes=[dust,cell]")
    with pytest.raises(DataError, match=rf"{split}\.json.*hair \(1\).*dust, cell"):
        resolve_classes(config)
    assert resolve_classes(coco_config(TWO, THREE, "dataset.thing_classes=[dust,cell]", used={1, 2})) is not None


def test_validation_that_numbers_its_classes_otherwise_is_matched_by_name(coco_config):
    config = coco_config(TWO, [category(1, "dust"), category(7, " Cell")])
    resolve_classes(config)
    (record,) = instantiate(config.dataloader.test.dataset)
    assert [(entry["id"], entry["category_id"]) for entry in record["annotations"]] == [(1, 1), (2, 0)]
    metadata = MetadataCatalog.get(config.dataloader.test.dataset.names.name)
    assert metadata.thing_classes == ["cell", "dust"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 1, 7: 0}


def test_validation_without_a_class_of_the_model_is_evaluated_by_its_own_ids(coco_config, tmp_path):
    config = coco_config(THREE, [category(4, "hair"), category(2, "cell")])
    resolve_classes(config)
    name = instantiate(config.dataloader.test.dataset.names)
    (record,) = DatasetCatalog.get(name)
    evaluator = COCOMaskEvaluator(name, output_dir=str(tmp_path / "results"), tasks=["bbox"])
    evaluator.reset()
    instances = Instances((40, 60))
    boxes = [entry["bbox"] for entry in record["annotations"]]
    boxes = [[x, y, x + w, y + h] for x, y, w, h in [*boxes, (0, 0, 5, 5)]]
    instances.pred_boxes, instances.scores = Boxes(torch.tensor(boxes)), torch.tensor([0.9, 0.8, 0.1])
    instances.pred_classes = torch.tensor([*(e["category_id"] for e in record["annotations"]), 1])  # 1: dust
    evaluator.process([record], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP50"] == pytest.approx(100)
    written = json.loads((tmp_path / "results/coco_instances_results.json").read_text())
    assert [entry["category_id"] for entry in written][:2] == [4, 2]
    assert written[2]["category_id"] not in (4, 2)


def test_several_files_are_joined_by_the_names_of_their_classes(tmp_path, unique):
    files = []
    for name, categories in (("a", TWO), ("b", [category(1, "hair"), category(2, "cell")])):
        annotations = [square(0, 1, 1), square(1, 1, 2)]
        json_file, root = write_coco(tmp_path, [image(1, f"{name}.png")], annotations, categories, f"{name}.json")
        files.append(L(register_coco)(name=unique(name), json_file=json_file, image_root=root))
    config = OmegaConf.create({"model": {"roi_heads": {"num_classes": "${dataset.num_classes}"}}})
    config.dataloader = OmegaConf.create({"train": {"dataset": {"names": files}}}, flags={"allow_objects": True})
    assert resolve_classes(config).names == ["cell", "dust", "hair"]
    dicts = checked_dataset(instantiate(config.dataloader.train.dataset.names))
    assert [entry["category_id"] for record in dicts for entry in record["annotations"]] == [0, 1, 2, 0]


def test_categories_of_one_name_are_one_class(coco_config, caplog):
    config = coco_config([category(1, "cell"), category(2, "dust"), category(3, "Cell")])
    assert resolve_classes(config) == Classes(["cell", "dust"], [1, 2])
    assert "cell (id 1), Cell (id 3)" in caplog.text
    dicts = instantiate(config.dataloader.train.dataset.dataset)
    assert [entry["category_id"] for entry in dicts[0]["annotations"]] == [0, 1, 0]


def test_the_only_class_may_have_another_name(coco_config, caplog):
    config = coco_config([category(1, "cell")], [category(1, "Zelle")])
    assert resolve_classes(config).names == ["cell"]
    assert "Zelle, is taken for cell" in caplog.text
    label_config = get_config("nuclei/mask_rcnn_lite0_fpn")
    label_config.dataloader.train.dataset.dataset.names.name = "classes_labels"
    assert resolve_classes(label_config, splits=["train"]).names == ["nucleus"]


def test_weights_know_the_classes_unless_the_config_gives_them(coco_config):
    stored = Classes(["dust", "cell"], [20, 10])
    config = coco_config(TWO)
    assert resolve_classes(config, stored, ["test"]) == stored
    assert numbers(config) == (2, 2)
    dicts = instantiate(config.dataloader.test.dataset)
    assert [entry["category_id"] for entry in dicts[0]["annotations"]] == [1, 0]
    given = coco_config(TWO, None, "dataset.thing_classes=[cell,dust]")
    assert resolve_classes(given, stored, splits=()) == Classes(["cell", "dust"], [10, 20])
    with pytest.raises(DataError, match=r"3 classes of the weights .*dataset\.num_classes=2"):
        resolve_classes(coco_config(TWO, None, "dataset.num_classes=2"), Classes(list("abc")), splits=())
    with pytest.raises(DataError, match=r"val\.json.*hair"):
        resolve_classes(coco_config(THREE), stored, ["test"])


def test_weights_without_names_leave_the_number_of_the_config(coco_config):
    config = coco_config(TWO, None, "dataset.num_classes=7")
    assert resolve_classes(config, None, splits=()) is None
    assert numbers(config) == (7, 7)


def test_data_registered_elsewhere_must_be_numbered_like_the_model(tmp_path, unique):
    json_file, root = write_coco(tmp_path, [image(1)], [square(0), square(1, 1, 2)], TWO)
    name = unique("foreign")
    register_coco_instances(name, {}, json_file, root)
    config = OmegaConf.create({"dataloader": {"train": {"dataset": {"names": name}}}})
    assert resolve_classes(config) == Classes(["cell", "dust"], [1, 2])
    assert config.dataset.num_classes == 2
    for names in (["dust", "cell"], ["cell"]):
        config.dataset = {"thing_classes": names}
        with pytest.raises(DataError, match=rf"{name}.*cell, dust, in this order"):
            resolve_classes(config)


@pytest.mark.parametrize("names", [["a", "b"], None])
def test_data_without_names_has_no_class_that_the_model_takes_for_background(unique, names, tmp_path):
    json_file, root = write_coco(tmp_path, [image(1)], [square(0), square(1, 1, 2), square(2, 1, 3)], THREE)
    register_coco(unique("read"), json_file, root)
    dicts = DatasetCatalog.get(unique("read"))
    name = unique("nameless")
    DatasetCatalog.register(name, lambda: dicts)
    config = OmegaConf.create({"dataloader": {"train": {"dataset": {"names": name}}}, "dataset": {}})
    config.dataset.thing_classes = names
    config.model = {"roi_heads": {"num_classes": 2}}
    resolve_classes(config)
    with pytest.raises(DataError, match="category_id 2 is unknown"):
        checked_dataset(name)


@pytest.mark.parametrize("names", ["[]", "[a,b,A]"])
def test_names_that_are_none_or_twice_are_refused(coco_config, names):
    with pytest.raises(DataError, match=r"dataset\.thing_classes"):
        resolve_classes(coco_config(TWO, None, f"dataset.thing_classes={names}"))


def test_a_missing_file_is_named_before_anything_is_built(coco_config):
    with pytest.raises(DataError, match=r"Data set '.*': .*nowhere\.json does not exist.*dataset\.") as raised:
        resolve_classes(coco_config(TWO, None, "dataset.val.json=nowhere.json"))
    assert str(raised.value).count("Data set") == 1


def test_a_target_that_cannot_be_imported_is_left_to_what_builds_it(coco_config):
    config = coco_config(TWO)
    config.model.backbone.bottom_up._target_ = "no.such.module.Thing"
    assert resolve_classes(config).names


def test_without_names_the_number_is_refused_by_name(coco_config):
    config = coco_config(TWO, None, "dataset.thing_classes=null")
    with pytest.raises(OmegaConfBaseException, match=r"dataset\.thing_classes names no classes"):
        _ = config.model.roi_heads.num_classes
    assert resolve_classes(config).names == ["cell", "dust"]
    assert numbers(config) == (2, 2)


def test_a_resolved_config_is_plain_and_resolves_to_itself(coco_config, tmp_path):
    config = coco_config(TWO)
    classes = resolve_classes(config)
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    again = LazyConfig.load(str(tmp_path / "config.yaml"))
    assert again.dataset.num_classes == 2
    assert resolve_classes(again) == classes


def test_a_file_that_changed_its_classes_is_refused(tmp_path, unique):
    json_file, root = write_coco(tmp_path, [image(1)], [square(0)], TWO)
    name = register_coco(unique("changing"), json_file, root)
    DatasetCatalog.get(name)
    write_coco(tmp_path, [image(1)], [square(0)], [category(1, "dust"), category(2, "cell")])
    with pytest.raises(DataError, match="others than when it was first read"):
        DatasetCatalog.get(name)


def test_label_images_have_one_class(tmp_path):
    config = apply_overrides(get_config("nuclei/mask_rcnn_lite0_fpn"), ["dataset.thing_classes=[a,b]"])
    config.dataloader.train.dataset.dataset.names.name = "classes_two"
    with pytest.raises(DataError, match="one class"):
        resolve_classes(config)
    assert register_label_maps("classes_none", str(tmp_path), thing_classes=None) == "classes_none"
    assert MetadataCatalog.get("classes_none").thing_classes == ["object"]


def test_the_decision_is_said(coco_config, caplog):
    caplog.set_level(logging.INFO)
    resolve_classes(coco_config(TWO))
    assert "2 classes, of the training data, not the config's default of 80: cell, dust" in caplog.text
