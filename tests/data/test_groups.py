"""Which images belong together: by their names where these say so, by their pixels where a number says nothing."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from maskrcnn_plus.data import groups
from maskrcnn_plus.data.groups import find_groups
from maskrcnn_plus.data.image_facts import read_facts
from maskrcnn_plus.data.near_duplicates import NEAR_DUPLICATE, join_pairs, signatures, similar_pairs

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SETS = ("nuclei_fluo", "nuclei_rgb")
SAME = {"20b20ab0", "cb4df20a"}  # one embryo, twice


def of_names(*names):
    """Groups of images that are not there, so that their names alone count."""
    return find_groups([{"file_name": f"/data/set/{name}"} for name in names])


def cells(seed, size=160, shift=0):
    """A picture of bright discs."""
    rng = np.random.default_rng(seed)
    picture = rng.normal(20, 3, (size, size)).astype(np.float32)
    for x, y, r in zip(rng.uniform(0, size, 25), rng.uniform(0, size, 25), rng.uniform(4, 10, 25), strict=True):
        cv2.circle(picture, (int(x + shift), int(y)), int(r), float(rng.uniform(90, 160)), -1)
    return picture.clip(0, 255).astype(np.uint8)


def save(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / name)
        records.append({"file_name": str(folder / name)})
    return records


def copies(picture):
    """What near-duplicates are: resized, compressed, brightened, darkened, in colour, of another depth."""
    packed = io.BytesIO()
    Image.fromarray(picture).save(packed, "JPEG", quality=40)
    return {
        "smaller": cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "larger": cv2.resize(picture, None, fx=1.7, fy=1.7, interpolation=cv2.INTER_CUBIC),
        "jpeg": np.asarray(Image.open(packed)),
        "brighter": (picture.astype(np.float64) * 1.3 + 25).clip(0, 255).astype(np.uint8),
        "darker": (picture * 0.4).astype(np.uint8),
        "colour": np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture,
        "deep": picture.astype(np.uint16) * 200 if picture.ndim == 2 else picture,
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"img_{k:04d}.png" for k in range(6)], [0, 1, 2, 3, 4, 5]),
        ([f"COCO_train2014_{k:012d}.jpg" for k in (9, 25, 30)], [0, 1, 2]),
        (["cat_1.png", "cat_2.png", "dog_1.png", "dog_2.png", "cow_1.png", "cow_2.png"], [0, 1, 2, 3, 4, 5]),
        (["cats/1.png", "cats/2.png", "dogs/1.png", "dogs/2.png"], [0, 1, 2, 3]),
        (["IMG_2021_0100.jpg", "IMG_2021_0200.jpg", "IMG_2021_0300.jpg"], [0, 1, 2]),
        ([f"{'0123456789abcdef' * 2}{k}.png" for k in range(4)], [0, 1, 2, 3]),
        ([f"{d}/images/{d}.png" for d in ("00ae65" * 4, "00ae66" * 4, "00ae67" * 4)], [0, 1, 2]),
        (["patient_01_1.png", "patient_01_2.png", "patient_02_1.png", "patient_02_2.png"], [0, 0, 1, 1]),
        (["tnbc_1_1.png", "tnbc_1_2.png", "tnbc_2_1.png", "tnbc_3_1.png", "tnbc_3_2.png", "tnbc_2_2.png"], None),
        (["p1/a.png", "p1/b.png", "p2/a.png", "p2/c.png", "p3/a.png", "p3/b.png"], [0, 0, 1, 1, 2, 2]),
        (["case7/images/a.png", "case7/images/b.png", "case9/images/a.png", "case9/images/b.png"], [0, 0, 1, 1]),
        (["patient01_left.png", "patient01_right.png", "patient02_left.png", "patient02_right.png"], [0, 0, 1, 1]),
        (["slideA_x0_y0.png", "slideA_x0_y1.png", "slideB_x0_y0.png", "slideA_x1_y0.png"], [0, 0, 1, 0]),
        (["a_0_512.png", "a_512_512.png", "b_0_0.png", "b_512_0.png"], [0, 0, 1, 1]),
        (["leaf_jpg.rf.0a1b2c3d4e.jpg", "train/leaf_jpg.rf.99aabbccdd.jpg", "stem_jpg.rf.0a1b2c3d4e.jpg"], [0, 0, 1]),
        (["stack.tif", "other.tif", "stack.tif"], [0, 1, 0]),
        ([], []),
    ],
)
def test_names(names, expected):
    assert of_names(*names) == (expected or [0, 0, 1, 2, 2, 1])[: len(names)]


def test_near_duplicates_are_found_and_others_are_not(tmp_path):
    originals = {f"o{seed}.png": cells(seed) for seed in range(12)}
    planted = {f"c{k}{name}.png": picture for k in (0, 1) for name, picture in copies(cells(k)).items()}
    records = save(tmp_path, {**originals, **planted})
    found = find_groups(records)
    kinds = len(planted) // 2
    assert found == [*range(12), *[0] * kinds, *[1] * kinds]


def test_frames_are_one_group_and_numbered_images_are_not(tmp_path):
    frames = save(tmp_path / "movie", {f"shot_{k:03d}.png": cells(5, shift=4 * k) for k in range(8)})
    single = save(tmp_path / "single", {f"img_{k:04d}.png": cells(50 + k) for k in range(8)})
    notes = []
    assert find_groups([*frames, *single], notes=notes) == [*[0] * 8, *range(1, 9)]
    assert any(note.startswith("frames of a video") and "8 images in 1 groups" in note for note in notes)
    vectors = signatures(read_facts(frames))
    assert vectors[0] @ vectors[-1] < NEAR_DUPLICATE  # the first and the last frame are no copies


def test_images_without_structure_are_like_none(tmp_path):
    flat = np.full((40, 40), 7, dtype=np.uint8)
    records = save(tmp_path, {"one.png": flat, "two.png": flat})
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert find_groups([*records, {"file_name": str(tmp_path / "broken.png")}]) == [0, 1, 2]


def test_many_images_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "MAX_COMPARED", 3)
    picture, notes = cells(0), []
    assert find_groups(save(tmp_path, dict.fromkeys(["a.png", "b.png", "c.png", "d.png"], picture)), notes=notes) == [
        *range(4)
    ]
    assert "too many" in notes[0]


def test_pairs_are_those_of_all_correlations():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2500, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs, values = similar_pairs(vectors, 0.9)
    expected = np.argwhere(np.triu(vectors @ vectors.T >= 0.9, k=1))
    assert {tuple(pair) for pair in pairs.tolist()} == {tuple(pair) for pair in expected.tolist()}
    np.testing.assert_allclose(values, (vectors[pairs[:, 0]] * vectors[pairs[:, 1]]).sum(1), rtol=1e-5)


def test_groups_are_numbered_as_they_appear():
    assert join_pairs(np.array([[1, 4], [4, 2]]), 6).tolist() == [0, 1, 1, 2, 1, 3]
    assert join_pairs(np.zeros((0, 2), dtype=np.int64), 3).tolist() == [0, 1, 2]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_of_real_images_two_are_the_same():
    files = [str(file) for name in SETS for file in sorted((SHARED / name / "images").glob("*.png"))]
    pairs, _ = similar_pairs(signatures(read_facts([{"file_name": file} for file in files])))
    assert len(files) > 500
    assert [{Path(files[k]).stem[:8] for k in pair} for pair in pairs.tolist()] == [SAME]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_copies_of_real_images_are_found(tmp_path):
    files = [file for name in ("nuclei_fluo", "nuclei_he") for file in sorted((SHARED / name / "images").glob("*.png"))]
    files = files[::45]
    records = [{"file_name": str(file)} for file in files]
    pictures = {
        f"{file.stem}-{name}.png": copy for file in files for name, copy in copies(np.asarray(Image.open(file))).items()
    }
    kinds = len(pictures) // len(files)
    found = find_groups([*records, *save(tmp_path, pictures)])
    assert found == [*range(len(files)), *[k for k in range(len(files)) for _ in range(kinds)]]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_patients_by_real_names():
    files = sorted((SHARED / "nuclei_he" / "images").glob("*.png"))
    patients = [file.stem.split("_")[1] for file in files]
    expected = [sorted(set(patients)).index(patient) for patient in patients]
    assert find_groups([{"file_name": str(file)} for file in files]) == expected
