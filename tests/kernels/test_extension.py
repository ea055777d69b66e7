"""Building, loading and doing without the compiled extension."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vlkd_kernels import extension

ROOT = Path(__file__).parents[2]
needs_extension = pytest.mark.skipif(extension.load() is None, reason=f"no extension: {extension.why_not()}")


@needs_extension
def test_build_info_tells_how_it_was_built() -> None:
    info = extension.build_info()
    assert info["loaded"] and info["why_not"] is None and extension.why_not() is None
    assert info["torch"].split("+")[0].split(".")[:2] == torch.__version__.split("+")[0].split(".")[:2]
    assert "-O3" in info["cxx_flags"] and info["compiler"]
    assert isinstance(info["cuda"], bool)
    if not info["cuda"]:
        assert info["without_cuda"]


@needs_extension
def test_cuda_kernels_are_compiled_for_every_architecture() -> None:
    """What they cost there is judged by test_ahead_of_time.py."""
    info = extension.build_info()
    if not info["cuda"]:
        pytest.skip(f"built without CUDA: {info['without_cuda']}")
    if isinstance(info["kernels"], str):
        pytest.skip(info["kernels"])
    wanted = {"sm_" + a.removesuffix("+PTX").replace(".", "") for a in info["cuda_architectures"].split(";")}
    assert {k["architecture"] for k in info["kernels"]} == wanted


def load_anew(
    monkeypatch: pytest.MonkeyPatch, folder: Path, record: dict | None
) -> tuple[ModuleType | None, str | None]:
    """What a first use would find with this build record."""
    path = folder / "_build.json"
    if record is not None:
        path.write_text(json.dumps(record))
    monkeypatch.setattr(extension, "_RECORD", path)
    return extension._load.__wrapped__()


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLKD_DISABLE_EXTENSION", "1")
    module, reason = load_anew(monkeypatch, tmp_path, {"torch": torch.__version__})
    assert module is None and reason is not None and "VLKD_DISABLE_EXTENSION" in reason


def test_a_failed_build_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, reason = load_anew(monkeypatch, tmp_path, {"torch": torch.__version__, "error": "no compiler"})
    assert module is None and reason is not None
    assert "no compiler" in reason and "pip install" in reason


def test_another_torch_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, reason = load_anew(monkeypatch, tmp_path, {"torch": "1.13.1+cu117"})
    assert module is None and reason is not None
    assert "built against torch 1.13.1+cu117" in reason and torch.__version__ in reason


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModuleNotFoundError("No module named 'vlkd_kernels._C'"), "not built"),
        (ImportError("undefined symbol"), "failed"),
    ],
)
def test_an_import_that_fails_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: ImportError, expected: str
) -> None:
    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(extension.importlib, "import_module", fail)
    module, reason = load_anew(monkeypatch, tmp_path, None)
    assert module is None and reason is not None
    assert expected in reason and str(error) in reason


@pytest.mark.slow
def test_the_library_works_without_it() -> None:
    program = """
import torch, vlkd_kernels as v
x = torch.randn(1, 1, 3, 4)
assert v.attention_mse(x, x, x, x).item() == 0
assert not v.build_info()["loaded"]
try:
    v.attention_mse(x, x, x, x, backend="cpu")
except v.BackendError as error:
    print(error)
"""
    result = run([sys.executable, "-c", program], VLKD_DISABLE_EXTENSION="1")
    assert "VLKD_DISABLE_EXTENSION" in result.stdout, result.stderr


# setup.py


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vlkd_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def toolkit(folder: Path, version: str = "13.0", architectures: str = "compute_80 compute_90 compute_100") -> Path:
    """A folder that answers like a CUDA toolkit."""
    (folder / "include").mkdir(parents=True)
    (folder / "include" / "cuda_runtime.h").touch()
    script(
        folder / "bin" / "nvcc", f'case "$1" in --version) echo "release {version}, V";; *) echo {architectures};; esac'
    )
    return folder


def script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_the_toolkit_is_the_named_one_or_that_of_nvcc(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "named")))
    assert setup.find_toolkit() == tmp_path / "named"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert setup.find_toolkit() is None
    monkeypatch.delenv("CUDA_HOME")
    found = toolkit(tmp_path / "linked")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "nvcc").symlink_to(found / "bin" / "nvcc")
    monkeypatch.setenv("PATH", str(tmp_path / "path") + os.pathsep + os.environ["PATH"])
    assert setup.find_toolkit() == found


def test_cuda_is_left_out_with_a_reason(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VLKD_NO_CUDA", raising=False)
    here = toolkit(tmp_path / "cuda", version="13.0")
    assert setup.why_no_cuda(here, "13.2") is None
    assert "CUDA 13.0" in setup.why_no_cuda(here, "12.8") and "CUDA 12.8" in setup.why_no_cuda(here, "12.8")
    assert "without CUDA" in setup.why_no_cuda(here, None)
    assert "no CUDA toolkit" in setup.why_no_cuda(None, "13.2")
    monkeypatch.setenv("VLKD_NO_CUDA", "1")
    assert "VLKD_NO_CUDA" in setup.why_no_cuda(here, "13.2")


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        ([], "8.0+PTX"),
        ([(9, 0), (8, 0), (9, 0)], "8.0;9.0"),
        ([(7, 5), (9, 0)], "9.0"),
        ([(7, 5)], "8.0+PTX"),
        ([(11, 0)], "8.0+PTX"),  # which this nvcc does not know
    ],
)
def test_architectures_are_those_of_the_gpus_that_are_here(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, present: list[tuple[int, int]], chosen: str
) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(present))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(present))
    monkeypatch.setattr(torch.cuda, "get_device_capability", present.__getitem__)
    assert setup.choose_architectures(toolkit(tmp_path / "cuda")) == chosen
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    assert setup.choose_architectures(tmp_path / "cuda") == "8.6"


@pytest.mark.parametrize(
    ("architectures", "capability", "way"),
    [
        ("8.0+PTX", (8, 0), "machine code"),
        ("8.0+PTX", (8, 9), "machine code"),
        ("8.0+PTX", (9, 0), "PTX"),
        ("8.0;9.0+PTX", (12, 0), "PTX"),
        ("8.0;9.0", (10, 0), None),
        ("8.6", (8, 0), None),
        ("9.0+PTX", (8, 6), None),
        ("9.0a", (9, 0), "machine code"),
        ("9.0a+PTX", (10, 0), None),
        ("10.0a 12.0", (10, 3), None),
        ("8.0 9.0+PTX", (10, 0), "PTX"),
        ("Ampere;Hopper", (9, 0), "machine code"),
    ],
)
def test_a_gpu_runs_machine_code_of_its_kind_or_older_ptx(
    architectures: str, capability: tuple[int, int], way: str | None
) -> None:
    assert extension.runs_on(architectures, capability) == way


def test_kernel_resources_are_read_from_cuobjdump(setup: ModuleType) -> None:
    text = """
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z4planPl:
  REG:40 STACK:16 SHARED:256 LOCAL:0 CONSTANT[0]:600 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    (entry,) = setup.parse_resources(text)
    assert entry.pop("kernel") in ("plan", "_Z4planPl")
    assert entry == {
        "architecture": "sm_90",
        "registers": 40,
        "stack_bytes": 16,
        "shared_bytes": 256,
        "local_bytes": 0,
    }


def build(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    """Run the build command into a folder; what it printed and what it wrote down."""
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(folder / "lib")]
    result = run([*command, "--build-temp", str(folder / "temp")], **environment)
    record = folder / "lib" / "vlkd_kernels" / "_build.json"
    return result, json.loads(record.read_text()) if record.exists() else {}


@pytest.mark.slow
def test_a_build_without_the_extension_says_so(tmp_path: Path) -> None:
    result, record = build(tmp_path, VLKD_NO_EXTENSION="1")
    assert result.returncode == 0, result.stderr
    assert record == {"torch": torch.__version__, "error": "left out by VLKD_NO_EXTENSION"}


@pytest.mark.slow
def test_a_compiler_that_fails_does_not_fail_the_build(tmp_path: Path) -> None:
    script(tmp_path / "g++", 'case "$1" in -dump*) echo 12;; *) echo "sorry" >&2; exit 1;; esac')
    result, record = build(tmp_path, VLKD_NO_CUDA="1", CXX=str(tmp_path / "g++"))
    assert result.returncode == 0, result.stderr
    assert record["error"].startswith("it could not be compiled: ")
    assert not list((tmp_path / "lib").rglob("*.so"))


@pytest.mark.slow
def test_force_cuda_fails_rather_than_falls_back(tmp_path: Path) -> None:
    result, record = build(tmp_path, FORCE_CUDA="1", VLKD_NO_CUDA="1")
    assert result.returncode != 0 and record == {}
    assert "FORCE_CUDA is set, but left out by VLKD_NO_CUDA" in result.stderr
