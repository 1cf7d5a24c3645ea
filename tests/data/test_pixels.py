"""Pixels on disk: whatever is done to them, they are the pixels that the same operations give on an array."""

import os
import pickle
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data.pixels import File, OnDisk, joined, save_pixels, taken

SHAPE = (3, 2)


def images(n: int, seed: int = 0, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (n, *SHAPE), dtype, endpoint=True)


def on_disk(pixels: np.ndarray, path) -> OnDisk:
    save_pixels(path, len(pixels), [pixels])
    return OnDisk.of(File(path))


def rows(draw, n: int) -> np.ndarray:
    """Positions, some from the end, or a mask."""
    if draw(st.booleans()):
        return np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    return np.array(draw(st.lists(st.integers(-n, n - 1), max_size=6)) if n else [], int)


@given(st.data())
def test_any_operations_give_what_they_give_on_an_array(data):
    draw = data.draw
    with TemporaryDirectory() as folder:
        pairs = []
        for number in range(3):
            array = images(draw(st.integers(0, 5)), number)
            pairs.append((on_disk(array, f"{folder}/{number}.npy"), array))
        pairs.append((images(2, 3), images(2, 3)))  # one in memory among them
        for _ in range(draw(st.integers(1, 6))):
            lazy, array = draw(st.sampled_from(pairs))
            match draw(st.sampled_from(["take", "join", "window"])):
                case "take":
                    chosen = rows(draw, len(array))
                    pairs.append((taken(lazy, chosen), array[chosen]))
                case "join":
                    other = draw(st.sampled_from(pairs))
                    pairs.append((joined([lazy, other[0]]), np.concatenate([array, other[1]])))
                case "window":
                    levels = np.random.default_rng(draw(st.integers(0, 9))).permutation(256).astype(np.uint8)
                    pairs.append((OnDisk.of(lazy).through(levels), levels[array]))
        for lazy, array in pairs:
            again = pickle.loads(pickle.dumps(lazy))
            assert np.array_equal(again, array) and len(lazy) == len(array)
            assert (lazy.shape, lazy.dtype, lazy.ndim) == (array.shape, array.dtype, array.ndim)
            chosen = rows(draw, len(array))
            assert np.array_equal(lazy[chosen], array[chosen])
            cut = draw(st.slices(max(len(array), 1)))
            assert np.array_equal(lazy[cut], array[cut])
            assert np.array_equal(lazy[:, 1], array[:, 1]) and np.array_equal(lazy[:, 0, ::-1], array[:, 0, ::-1])
            assert all(np.array_equal(a, b) for a, b in zip(lazy, array, strict=True))


def test_a_number_is_one_image_and_none_lies_outside(tmp_path):
    array = images(4, dtype=np.uint16)
    lazy = on_disk(array, tmp_path / "a.npy")
    assert np.array_equal(lazy[-1], array[-1]) and np.array_equal(lazy[2, 1], array[2, 1])
    assert np.asarray(lazy, np.float32).dtype == np.float32
    for index in (4, -5, [0, 4]):
        with pytest.raises(IndexError):
            lazy[index]
    with pytest.raises(ValueError, match="without being copied"):
        np.array(lazy, copy=False)


def test_a_pickle_holds_paths_and_rows(tmp_path):
    lazy = on_disk(np.zeros((1000, *SHAPE), np.uint8), tmp_path / "a.npy").take(np.arange(3))
    assert len(pickle.dumps(lazy)) < 1000 < pickle.loads(pickle.dumps(lazy)).parts[0][0].shape[0] * 6


def test_a_file_that_is_replaced_keeps_its_content_but_is_not_opened_again(tmp_path):
    old, new = images(3, 0), images(3, 1)
    lazy = on_disk(old, tmp_path / "a.npy")
    sent = pickle.dumps(lazy)
    save_pixels(tmp_path / "b.npy", 3, [new])
    os.replace(tmp_path / "b.npy", tmp_path / "a.npy")
    assert np.array_equal(lazy, old) and np.array_equal(OnDisk.of(File(tmp_path / "a.npy")), new)
    with pytest.raises(ValueError, match="written anew since it was opened: load the cohort again"):
        pickle.loads(sent)


def test_files_are_closed_when_nothing_uses_them(tmp_path):
    lazy = on_disk(images(3), tmp_path / "a.npy").take([1])
    descriptor = lazy.parts[0][0].descriptor
    os.fstat(descriptor)
    del lazy
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_a_file_is_the_one_that_numpy_writes(tmp_path, n, dtype):
    array = images(n, dtype=dtype)
    save_pixels(tmp_path / "a.npy", n, np.array_split(array, 2))
    np.save(tmp_path / "b.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_files_that_hold_something_else_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, images(4))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="shorter than it says"):
        File(path)
    np.save(path, np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="no images"):
        File(path)
    with pytest.raises(ValueError, match="2 images came for the 3 rows"):
        save_pixels(path, 3, [images(2)])
