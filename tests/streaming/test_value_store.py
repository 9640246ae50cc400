"""Values come back as they were put, from memory or from a file, and leave nothing behind."""

import tempfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import StorageError
from fxquant.streaming.value_store import ValueStore

Pair = namedtuple("Pair", "first second")

DTYPES = (
    torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.complex64
)  # fmt: skip


def typed(dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: (torch.randn(3, 5) * 9).to(dtype)


TENSORS: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: torch.randn(3, 5),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels last, 1 channel": lambda: torch.empty(
        2, 1, 4, 5, memory_format=torch.channels_last
    ).fill_(7),
    "channels last, 1x1": lambda: torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last),
    "channels last, 3-D": lambda: torch.randn(2, 3, 4, 5, 2).to(
        memory_format=torch.channels_last_3d
    ),
    "permuted": lambda: torch.randn(2, 3, 4).permute(2, 0, 1),
    "transposed": lambda: torch.randn(4, 3).T,
    "0-dim": lambda: torch.tensor(2.5),
    "empty": lambda: torch.empty(0, 3),
    "parameter": lambda: nn.Parameter(torch.randn(3)),
    **{str(dtype): typed(dtype) for dtype in DTYPES},
    "torch.bool": lambda: torch.randn(3, 5) > 0,
    "conjugate": lambda: torch.randn(3, 5, dtype=torch.complex64).conj(),
}
CAPS = pytest.mark.parametrize("max_bytes", [None, 0, 100], ids="cap={}".format)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for temporary files, all of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[IO[bytes]]:
    """Return the list of all files that will be opened."""
    opened: list[IO[bytes]] = []
    make = tempfile.TemporaryFile

    def keep(*args: Any, **kwargs: Any) -> IO[bytes]:
        opened.append(make(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", keep)
    return opened


def assert_same(actual: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert (actual.dtype, actual.device) == (expected.dtype, expected.device)
        assert (actual.shape, actual.stride()) == (expected.shape, expected.stride())
        assert torch.equal(actual, expected)
    elif isinstance(expected, (tuple, list)):
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        assert_same(list(actual.values()), list(expected.values()))
    else:
        assert actual == expected


@CAPS
@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
def test_a_tensor_comes_back_equal_strides_and_dtype_kept(
    make: Callable[[], Tensor], max_bytes: int | None
) -> None:
    tensor = make()
    with ValueStore(max_bytes) as store:
        store.put("other", 0, torch.randn(7))
        store.put("key", 3, tensor)
        store.put("key", 4, torch.randn(7))
        assert_same(store.get("key", 3), tensor)
        assert_same(store.get("key", 3), tensor)


@CAPS
def test_nested_values_come_back(max_bytes: int | None) -> None:
    value = (torch.randn(3), {"a": [torch.randn(2, 5), None], "b": 3}, "text", slice(1, None), 2.5)
    with ValueStore(max_bytes) as store:
        store.put("key", 0, value)
        assert_same(store.get("key", 0), value)


@CAPS
@pytest.mark.parametrize(
    "value",
    [torch.Size([2, 3]), torch.randn(4, 5).max(dim=1), Pair(torch.randn(3), 1)],
    ids=["size", "max", "namedtuple"],
)
def test_a_tuple_with_names_or_methods_comes_back_as_what_it_was(
    value: Any, max_bytes: int | None
) -> None:
    with ValueStore(max_bytes) as store:
        store.put("key", 0, value)
        assert type(store.get("key", 0)) is type(value)
        assert_same(store.get("key", 0), value)


def test_counts_bytes_up_and_down_and_never_exceeds_the_cap() -> None:
    with ValueStore(max_bytes=100) as store:
        for number in range(6):  # 40 bytes each
            store.put("key", number, (torch.randn(10), 1))
            assert store.bytes_in_memory == min(80, 40 * (number + 1))
        assert store.bytes_spilled == 4 * 40
        for number, left in zip((4, 0, 2, 1), (80, 40, 40, 0), strict=True):
            store.drop("key", number)
            assert store.bytes_in_memory == left
        store.put("key", 9, torch.randn(25))  # there is room again
        assert (store.bytes_in_memory, store.bytes_spilled) == (100, 160)
    assert store.bytes_in_memory == 0


def test_without_a_cap_a_tensor_is_not_copied() -> None:
    with ValueStore() as store:
        tensor = torch.randn(10)
        store.put("key", 0, tensor)
        assert store.get("key", 0) is tensor


def test_a_small_view_does_not_hold_a_large_base() -> None:
    base = torch.randn(100, 8)
    with ValueStore() as store:
        store.put("small", 0, base[:3])
        store.put("half", 0, base[:50])
        assert store.get("small", 0).untyped_storage().nbytes() == 3 * 8 * 4
        assert store.get("half", 0).data_ptr() == base.data_ptr()
        assert_same(store.get("small", 0), base[:3])


def test_changes_of_a_loaded_tensor_stay_private() -> None:
    with ValueStore(max_bytes=0) as store:
        store.put("key", 0, torch.ones(1000))
        store.get("key", 0).zero_()
        assert torch.equal(store.get("key", 0), torch.ones(1000))


def test_a_loaded_tensor_outlives_the_store(files: list[IO[bytes]]) -> None:
    with ValueStore(max_bytes=0) as store:
        store.put("key", 0, torch.ones(10_000))
        loaded = store.get("key", 0)
        store.drop("key", 0)
        assert [file.closed for file in files] == [True]
    assert torch.equal(loaded, torch.ones(10_000))


def test_a_file_goes_with_the_last_value_of_its_key(files: list[IO[bytes]], folder: Path) -> None:
    with ValueStore(max_bytes=0) as store:
        for key, number in (("a", 0), ("a", 1), ("b", 0)):
            store.put(key, number, torch.randn(5))
        assert list(folder.iterdir()) == []  # unlinked while it is open
        store.drop("a", 0)
        assert [file.closed for file in files] == [False, False]
        store.drop("a", 1)
        assert [file.closed for file in files] == [True, False]
    assert all(file.closed for file in files)
    assert list(folder.iterdir()) == []


class FullDisk:
    """A file that takes nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._file = Path("/dev/null").open("w+b")  # noqa: SIM115
        self.close = self._file.close
        self.seek = self._file.seek

    def write(self, _: bytes) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_an_error_that_tells_the_sizes_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", FullDisk)
    with ValueStore(max_bytes=5000) as store:
        store.put("key", 0, torch.ones(1250))
        with pytest.raises(StorageError) as caught:
            store.put("key", 1, torch.ones(1000, 3))
        assert torch.equal(store.get("key", 0), torch.ones(1250))
    assert str(caught.value) == (
        f"{folder}: cannot write 12,000 bytes beyond the 5,000 of max_bytes: No space left on "
        "device. Free some space, set TMPDIR to another folder, or raise Reconstruction.max_bytes"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("size", [10, 100_000], ids=["buffered", "at once"])
def test_leaving_the_store_of_a_full_disk_keeps_the_error(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def full(**_: Any) -> IO[bytes]:
        return Path("/dev/full").open("w+b")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(StorageError), ValueStore(max_bytes=0) as store:
        store.put("key", 0, torch.ones(size))


def test_no_folder_for_temporary_files_at_all_is_the_same_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    with pytest.raises(StorageError) as caught, ValueStore(max_bytes=0) as store:
        store.put("key", 0, torch.ones(10))
    assert str(caught.value) == (
        "temporary files: cannot write 40 bytes beyond the 0 of max_bytes: No usable temporary "
        "directory found in ['/nowhere']. Free some space, set TMPDIR to another folder, or raise "
        "Reconstruction.max_bytes"
    )
