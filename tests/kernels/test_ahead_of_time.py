"""Every GPU kernel, compiled for GPUs that are not here; see benchmarks/static_table.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

pytest.importorskip("triton")

from benchmarks.ahead_of_time import GPUS, LEAST_SHARED_MEMORY
from vlkd_kernels.attention_mse.triton import head_shared_bytes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = {f"sm_{key}": gpu.shared_memory for key, gpu in GPUS.items()}  # bytes a block may have
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PRODUCTS = (
    "head",
    "rows",
    "forward",
    "queries",
    "keys",
    "weights",
    "similarity",
    "gradient",
)  # kernels with a matrix product
TENSOR_CORES = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA"}

Table = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "static_table.json").read_text())


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """The quick part, compiled now, by a process in which Triton's interpreter is off."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.static_table"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def triton_here(compiled: dict[str, Any]) -> str:
    """The version of Triton that compiled."""
    (version,) = compiled["kernels"]
    return version


@pytest.fixture(params=["compiled", "committed oldest", "committed newest"])
def of_version(request: pytest.FixtureRequest) -> tuple[Version, Table]:
    """One version of Triton and its table: a row a kernel, case and architecture."""
    table, _, which = request.param.partition(" ")
    versions = request.getfixturevalue(table)["kernels"]
    version = (min if which == "oldest" else max)(versions, key=Version)
    return Version(version), versions[version]


@pytest.fixture
def kernels(of_version: tuple[Version, Table]) -> Table:
    return of_version[1]


def test_the_quick_part_holds_every_kernel_on_every_architecture(compiled: dict[str, Any], triton_here: str) -> None:
    names = {tuple(key.split("/")[i] for i in (0, -2, -1)) for key in compiled["kernels"][triton_here]}
    kernels = {
        "attention_mse": ("head", "rows", "keys"),
        "distill_attention": ("forward", "queries", "keys"),
        "token_nce": ("norms", "positives", "weights", "totals", "similarity", "softmax", "gradient", "finish"),
    }
    without = {("attention_mse", "head", "sm_80")}  # where it would spill
    assert names == {(op, kernel, sm) for op, ks in kernels.items() for kernel in ks for sm in SHARED_MEMORY} - without


def test_nothing_spills(of_version: tuple[Version, Table]) -> None:
    """Triton 3.6 keeps a few bytes of three kernels on sm_80 that are at the limit of registers; 3.8 none of the same tiles."""
    version, kernels = of_version
    limits = {"sm_80": 40} if version < Version("3.7") else {}
    spilled = {key: row["stack"] for key, row in kernels.items() if row["stack"] > limits.get(key.rsplit("/", 1)[1], 0)}
    assert spilled == {}


def test_shared_memory_fits(kernels: Table) -> None:
    """On sm_80 with what its kin have as well, sm_86, sm_89 and sm_120."""
    limits = SHARED_MEMORY | {"sm_80": LEAST_SHARED_MEMORY}
    assert all(row["shared"] <= limits[key.rsplit("/", 1)[1]] for key, row in kernels.items())


def test_a_head_in_one_tile_takes_no_more_shared_memory_than_was_asked_for(kernels: Table) -> None:
    heads = {tuple(key.split("/")): row["shared"] for key, row in kernels.items() if "/head/" in key}
    assert heads
    for (_, dtype, _, length, width_s, width_t, *_), shared in heads.items():
        assert shared <= head_shared_bytes(DTYPES[dtype], int(length[1:]), max(int(width_s), int(width_t)))


def test_offsets_have_64_bits(compiled: dict[str, Any], triton_here: str) -> None:
    """A product of a size or a stride: `3 * plane` of 7.2e8 rows no longer fits 32 bits."""
    assert {key: row["narrow"] for key, row in compiled["kernels"][triton_here].items() if row["narrow"]} == {}


def test_half_precision_products_run_on_the_tensor_cores(kernels: Table) -> None:
    for key, row in kernels.items():
        parts = key.split("/")
        if parts[1] != "float32" and parts[-2] in PRODUCTS:
            # A head of 64 keys or fewer is too small for the larger instructions of sm_90 and sm_100.
            small = "HMMA" in row["instructions"] and parts[-2] == "head"
            assert small or TENSOR_CORES[parts[-1]] in row["instructions"], key


def test_float32_products_are_not_rounded_to_tf32(kernels: Table) -> None:
    """float16's only TF32 products are those with weights that float16 cannot hold."""
    for key, row in kernels.items():
        parts = key.split("/")
        if parts[-2] in PRODUCTS:
            weighted = parts[1] == "float16" and parts[-2] not in ("similarity", "weights")
            assert ("tf32" in row["precisions"]) == weighted, key
            assert row["precisions"] and set(row["precisions"]) <= {"ieee", "tf32"}, key


def test_the_committed_table_is_up_to_date(
    compiled: dict[str, Any], committed: dict[str, Any], triton_here: str
) -> None:
    table = committed["kernels"].get(triton_here)
    if table is None:
        pytest.skip(f"the tables are of Triton {' and '.join(committed['kernels'])}, this is {triton_here}")
    stale = {key for key, row in compiled["kernels"][triton_here].items() if table.get(key) != row}
    assert not stale, "run `python -m benchmarks.static_table --write`"


def architectures(table: Table) -> set[str]:
    return {key.rsplit("/", 1)[1] for key in table}


@pytest.fixture(params=["compiled", "committed"])
def csrc(request: pytest.FixtureRequest) -> Table:
    table = request.getfixturevalue(request.param)["csrc"]
    if not table:
        pytest.skip("the extension is built without CUDA")
    return table


def test_csrc_keeps_everything_in_registers(csrc: Table) -> None:
    of_nce = {f"nce_{name}" for name in ("copy_rows", "positives", "weights", "totals", "gradient", "finish")}
    assert {key.split("<")[0].split("/")[0] for key in csrc} == {"attention_mse_head", "ring_write"} | of_nce
    for key, row in csrc.items():
        threads = 1024 if key.startswith("plan") else 256
        assert row["stack"] == row["local"] == 0, key
        assert row["registers"] * threads <= 65536 and row["shared"] <= 48 * 1024, key


def test_csrc_multiplies_on_the_tensor_cores(csrc: Table) -> None:
    with_products = ("attention_mse_head", "nce_weights", "nce_gradient")
    kernels = {key: row for key, row in csrc.items() if key.startswith(with_products)}
    assert {key.split("<")[0] for key in kernels} == set(with_products)
    for key, row in kernels.items():
        suffix = ".BF16" if "BFloat16" in key else ""
        assert row["instructions"] == [f"HMMA.16816.F32{suffix}"], key


def test_the_committed_csrc_table_is_up_to_date(compiled: dict[str, Any], committed: dict[str, Any]) -> None:
    if compiled["cuda"] != committed["cuda"]:
        pytest.skip(f"the table is of CUDA {committed['cuda']}, this is {compiled['cuda'] or 'built without'}")
    assert architectures(committed["csrc"]) == set(SHARED_MEMORY)
    built = architectures(compiled["csrc"]) & set(SHARED_MEMORY)  # the extension is compiled for the GPUs that are here
    ours, kept = (
        {key: row for key, row in table["csrc"].items() if key.rsplit("/", 1)[1] in built}
        for table in (compiled, committed)
    )
    assert ours == kept, "run `python -m benchmarks.static_table --write`"
