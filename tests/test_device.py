"""Where to compute, and how much memory there is for it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ist_fed.device import format_bytes, free_memory, parse_bytes, pick_device, return_freed_memory, shares_memory
from ist_fed.errors import TrainingError

CPU = torch.device("cpu")


def test_a_device_by_name() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cpu:x", ""])
def test_a_device_that_is_not_there_is_named_with_those_that_may_be(name: str) -> None:
    with pytest.raises(TrainingError, match=f"device '{name}' cannot be used here: .*; say 'auto', 'cpu', 'cuda'"):
        pick_device(name)


@pytest.mark.parametrize("integrated", [0, 1])
def test_only_a_gpu_of_its_own_has_memory_of_its_own(integrated: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(is_integrated=integrated))
    assert shares_memory(torch.device("cuda")) == bool(integrated)
    assert shares_memory(CPU)
    assert shares_memory(torch.device("mps"))


class TestBytes:
    @pytest.mark.parametrize(
        ("text", "amount"),
        [
            ("2GiB", 2 << 30), ("512MiB", 512 << 20), ("2GB", 2 * 10**9), ("1.5 gb", 15 * 10**8), ("4096", 4096),
            (" 1 TiB ", 1 << 40), ("8kib", 8192), ("8KB", 8000), ("17B", 17), ("0.5KiB", 512),
        ],
    )  # fmt: skip
    def test_amounts(self, text: str, amount: int) -> None:
        assert parse_bytes(text) == amount

    @pytest.mark.parametrize(
        "text", ["", "GiB", "0", "0.5", "-1", "2 G", "2G", "two", "1e9", "1,5GB", "2GiBs", "nan", "9" * 99, "١GB"]
    )
    def test_what_is_no_amount_is_shown_with_how_to_write_one(self, text: str) -> None:
        with pytest.raises(TrainingError, match="is written like 2GiB, 512MiB or 2GB, and is positive, but is "):
            parse_bytes(text)

    @given(st.integers(1, 1 << 50))
    def test_what_is_written_is_read_back_to_four_digits(self, amount: int) -> None:
        assert parse_bytes(format_bytes(amount)) == pytest.approx(amount, rel=5e-4, abs=0.5)

    def test_nothing_is_written_as_nothing(self) -> None:
        assert format_bytes(0) == "0 B"
        assert format_bytes(1023 << 20) == "1023 MiB"


def system(root: Path, available: int, groups: str = "", **files: str) -> Path:
    """A system's `/proc` and `/sys/fs/cgroup`; a file's path is written with `__` for `/` and `_` for `.`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available // 1024} kB\nHugePages: 0\n")
    (root / "proc/self/cgroup").write_text(groups)
    for path, text in files.items():
        file = root / "sys/fs/cgroup" / path.replace("__", "/").replace("-", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def group(limit: str, used: int, files: int) -> dict[str, str]:
    return {
        "memory-max": limit,
        "memory-current": str(used),
        "memory-stat": f"anon 5\nactive_file {files}\ninactive_file {files}\n",
    }


def under(path: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{path}__{name}": text for name, text in files.items()}


class TestFreeMemory:
    """Of the processor, by what Linux writes; the numbers are in MiB."""

    MIB = 1 << 20

    def free(self, root: Path) -> float:
        return free_memory(CPU, root) / self.MIB

    def test_what_the_system_has_available(self, tmp_path: Path) -> None:
        assert self.free(system(tmp_path, 800 * self.MIB)) == 800

    def test_no_more_than_a_control_group_leaves_and_the_page_cache_is_left(self, tmp_path: Path) -> None:
        files = under("box", group(str(500 * self.MIB), 300 * self.MIB, 50 * self.MIB))
        assert self.free(system(tmp_path, 800 * self.MIB, "0::/box\n", **files)) == 500 - 300 + 2 * 50

    def test_a_group_above_binds_too_and_one_without_a_limit_does_not(self, tmp_path: Path) -> None:
        files = under("a", group(str(400 * self.MIB), 100 * self.MIB, 0)) | under("a__b", group("max\n", 0, 0))
        assert self.free(system(tmp_path, 800 * self.MIB, "0::/a/b\n", **files)) == 300

    def test_within_a_container_the_own_group_looks_like_the_root(self, tmp_path: Path) -> None:
        files = group(str(400 * self.MIB), 100 * self.MIB, 0)
        assert self.free(system(tmp_path, 800 * self.MIB, "0::/seen/from/outside\n", **files)) == 300

    def test_control_groups_of_version_1(self, tmp_path: Path) -> None:
        files = {
            "memory__box__memory-limit_in_bytes": str(500 * self.MIB),
            "memory__box__memory-usage_in_bytes": str(300 * self.MIB),
            "memory__box__memory-stat": f"inactive_file 7\ntotal_inactive_file {10 * self.MIB}\ntotal_active_file 0\n",
        }
        assert self.free(system(tmp_path, 800 * self.MIB, "3:cpu:/\n2:memory:/box\n0::/\n", **files)) == 210

    def test_a_group_that_holds_more_than_it_may_leaves_nothing(self, tmp_path: Path) -> None:
        files = under("box", group(str(100 * self.MIB), 300 * self.MIB, 0))
        assert self.free(system(tmp_path, 800 * self.MIB, "0::/box\n", **files)) == 0

    def test_where_there_is_no_proc_all_that_is_built_in_counts(self, tmp_path: Path) -> None:
        assert free_memory(CPU, tmp_path) > 1 << 28

    def test_here_it_is_less_than_there_is(self) -> None:
        assert 0 < free_memory(CPU) < free_memory(CPU, Path("/nowhere"))


def test_giving_memory_back_changes_nothing_else() -> None:
    return_freed_memory()
    assert torch.ones(1 << 20).sum() == 1 << 20
