"""Builds the optional compiled extension `vlkd_kernels._C` from csrc; everything else is in pyproject.toml.

C++ is always compiled, CUDA if a toolkit is found that fits torch; whether this machine has a GPU does not matter.
If something cannot be compiled the installation still succeeds, and `vlkd_kernels/_build.json` keeps the reason.

Environment:
    VLKD_NO_EXTENSION=1    compile nothing
    VLKD_NO_CUDA=1         compile C++ only
    FORCE_CUDA=1           fail where the installation would otherwise go on without CUDA
    TORCH_CUDA_ARCH_LIST   CUDA architectures, such as "8.0;9.0+PTX"; without it those of the GPUs that are here, else 8.0+PTX,
                           which newer ones translate when they first load it
    CUDA_HOME              the toolkit, if it is not the one whose nvcc is on the PATH
    MAX_JOBS               how many files are compiled at a time
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

HERE = Path(__file__).parent
NAME = "vlkd_kernels._C"
RECORD = "_build.json"
# Each operator's folder has cpu.cpp, and for GPUs cuda.cpp and kernels whose instances are spread over files for as many jobs.
CPU_SOURCES = ["csrc/library.cpp", "csrc/*/cpu.cpp"]
CUDA_SOURCES = ["csrc/*/cuda.cpp", "csrc/*/*.cu"]
PORTABLE = (
    "8.0+PTX"  # what every GPU that the kernels need can run: newer ones translate the PTX when they first load it
)
CXX_FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-Wno-psabi"]
NVCC_FLAGS = ["-O3"]


def flag(name: str) -> bool:
    """Whether an environment variable is set to something that means yes."""
    return os.environ.get(name, "0").upper() in ("1", "ON", "YES", "TRUE", "Y")


def find_toolkit() -> Path | None:
    """The folder of a CUDA toolkit that can compile: one with nvcc and the runtime's headers."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    # nvcc on the PATH may be a link or a script that calls the real one
    candidates = [named] if named else [str(Path(nvcc).resolve().parent.parent) if nvcc else None, "/usr/local/cuda"]
    for folder in map(Path, filter(None, candidates)):
        if (folder / "bin" / "nvcc").exists() and (folder / "include" / "cuda_runtime.h").exists():
            return folder
    return None


def nvcc_output(toolkit: Path, option: str) -> str:
    """What nvcc prints for an option such as --version."""
    nvcc = str(toolkit / "bin" / "nvcc")
    return subprocess.run([nvcc, option], check=True, capture_output=True, text=True).stdout


def nvcc_version(toolkit: Path) -> str:
    """The toolkit's version, such as "13.0"."""
    match = re.search(r"release (\d+\.\d+)", nvcc_output(toolkit, "--version"))
    return match.group(1) if match else "unknown"


def why_no_cuda(toolkit: Path | None, torch_cuda: str | None) -> str | None:
    """Why CUDA is left out, or None if it is compiled."""
    if flag("VLKD_NO_CUDA"):
        return "left out by VLKD_NO_CUDA"
    if torch_cuda is None:
        return "this torch is built without CUDA"
    if toolkit is None:
        return "no CUDA toolkit was found (neither CUDA_HOME, nvcc on the PATH, nor /usr/local/cuda)"
    version = nvcc_version(toolkit)
    if version.split(".")[0] != torch_cuda.split(".")[0]:
        return f"the toolkit in {toolkit} is CUDA {version}, but this torch is built for CUDA {torch_cuda}"
    return None


def choose_architectures(toolkit: Path) -> str:
    """TORCH_CUDA_ARCH_LIST; without it those of the GPUs that are here and that this nvcc knows, or where none is, `PORTABLE`."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if named:
        return named
    known = nvcc_output(toolkit, "--list-gpu-arch").split()
    present = [f"{major}.{minor}" for major, minor in present_capabilities()]
    if present and all("compute_" + arch.replace(".", "") in known for arch in present):
        return ";".join(present)
    return PORTABLE


def present_capabilities() -> list[tuple[int, int]]:
    """Compute capabilities of the GPUs of this machine for which there are kernels, each once."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return sorted({capability for i in range(count) if (capability := torch.cuda.get_device_capability(i)) >= (8, 0)})


def sources(patterns: list[str]) -> list[str]:
    """The files of csrc that match one of the patterns."""
    return sorted(str(path.relative_to(HERE)) for pattern in patterns for path in HERE.glob(pattern))


def kernel_resources(library: Path, toolkit: Path) -> list[dict[str, Any]] | str:
    """Registers, stack and shared memory of every kernel in a library; or why they cannot be told."""
    tools = [str(toolkit / "bin" / "cuobjdump"), shutil.which("cuobjdump")]
    try:
        import triton  # its package carries the tool that a minimal toolkit lacks

        tools.append(str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"))
    except ImportError:
        pass
    tool = next((t for t in tools if t and Path(t).exists()), None)
    if tool is None:
        return "no cuobjdump was found when the extension was built"
    result = subprocess.run([tool, "--dump-resource-usage", str(library)], capture_output=True, text=True)
    if result.returncode:
        return f"cuobjdump failed: {result.stderr.strip()}"
    return parse_resources(result.stdout)


def parse_resources(text: str) -> list[dict[str, Any]]:
    """cuobjdump's resource usage, one entry for each kernel and architecture."""
    entries: list[dict[str, Any]] = []
    architecture = name = ""
    for line in text.splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            architecture = match.group(1)
        elif match := re.search(r"Function (\S+?):", line):
            name = match.group(1)
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            entries.append(
                {
                    "kernel": demangled(name),
                    "architecture": architecture,
                    "registers": registers,
                    "stack_bytes": stack,
                    "shared_bytes": shared,
                    "local_bytes": local,
                }
            )
    return entries


def demangled(symbol: str) -> str:
    """A C++ name as written, where c++filt is at hand."""
    tool = shutil.which("c++filt")
    if tool is None:
        return symbol
    name = subprocess.run([tool, symbol], capture_output=True, text=True).stdout.strip()
    return name.replace("(anonymous namespace)::", "").split("(")[0].removeprefix("void ")


def compile_flags(toolkit: Path | None) -> tuple[list[str], list[str]]:
    """Flags for the C++ compiler and for nvcc; those that `build_info()` reports are also given to the code as macros."""
    # OpenMP is compiled in but not linked: its symbols come from torch's own copy, so that the two share one pool.
    cxx = CXX_FLAGS + (["-fopenmp"] if sys.platform == "linux" else [])
    macros = {"VLKD_CXX_FLAGS": " ".join(cxx)}
    if toolkit is not None:
        macros["VLKD_CUDA_VERSION"] = nvcc_version(toolkit)
        macros["VLKD_CUDA_ARCHITECTURES"] = os.environ["TORCH_CUDA_ARCH_LIST"]
        macros["VLKD_NVCC_FLAGS"] = " ".join(NVCC_FLAGS)
    return cxx + [f"-D{name}={json.dumps(value)}" for name, value in macros.items()], list(NVCC_FLAGS)


def make_extension(toolkit: Path | None) -> Any:
    """The extension, with CUDA if a toolkit is given."""
    import pybind11
    from torch.utils import cpp_extension

    if toolkit is not None:
        os.environ["TORCH_CUDA_ARCH_LIST"] = choose_architectures(toolkit)
    cxx, nvcc = compile_flags(toolkit)
    make = cpp_extension.CppExtension if toolkit is None else cpp_extension.CUDAExtension
    return make(
        NAME,
        sources(CPU_SOURCES if toolkit is None else CPU_SOURCES + CUDA_SOURCES),
        include_dirs=[pybind11.get_include()],
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        depends=sorted(str(path.relative_to(HERE)) for path in HERE.glob("csrc/*/*.*h")),
        optional=True,
    )


def make_command(toolkit: Path | None, no_cuda: str | None) -> Any:
    """The build command: compiles what can be compiled and writes down what came of it."""
    import torch
    from setuptools.errors import BaseError, CCompilerError
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            self.force = True  # other flags need another build even where no source is newer; ninja skips what it can
            if flag("VLKD_NO_EXTENSION"):
                return self.record(error="left out by VLKD_NO_EXTENSION")
            without_cuda = no_cuda
            error = self.attempt()
            if error is not None and no_cuda is None:
                if flag("FORCE_CUDA"):
                    sys.exit(f"vlkd: FORCE_CUDA is set, but the build with CUDA failed: {error}")
                print(f"vlkd: building again without CUDA, because: {error}", file=sys.stderr)
                without_cuda = f"the build with CUDA failed: {error}"
                plain = make_extension(toolkit=None)
                for part in ("sources", "include_dirs", "library_dirs", "libraries", "extra_compile_args"):
                    setattr(self.extensions[0], part, getattr(plain, part))
                error = self.attempt()
            if error is not None:
                print(f"vlkd: the extension is not built, because: {error}", file=sys.stderr)
                Path(self.get_ext_fullpath(NAME)).unlink(missing_ok=True)
                return self.record(error=f"it could not be compiled: {error}")
            if without_cuda is not None:
                print(f"vlkd: the extension is built without CUDA, because: {without_cuda}", file=sys.stderr)
                return self.record(without_cuda=without_cuda)
            assert toolkit is not None
            kernels = kernel_resources(Path(self.get_ext_fullpath(NAME)), toolkit)
            return self.record(cuda_version=nvcc_version(toolkit), kernels=kernels)

        def attempt(self) -> str | None:
            """Compile and link; why that failed, or None."""
            self.extensions[0].optional = False  # an optional extension would hide the reason
            try:
                super().build_extensions()
            except (BaseError, CCompilerError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
                return " ".join(str(error).split())
            finally:
                self.extensions[0].optional = True
            return None

        @property
        def record_path(self) -> Path:
            return Path(self.build_lib) / "vlkd_kernels" / RECORD

        def record(self, **outcome: Any) -> None:
            self.record_path.parent.mkdir(parents=True, exist_ok=True)
            self.record_path.write_text(json.dumps({"torch": torch.__version__, **outcome}, indent=1) + "\n")

        def copy_extensions_to_source(self) -> None:
            super().copy_extensions_to_source()
            self.copy_file(str(self.record_path), str(HERE / "vlkd_kernels" / RECORD))

    return Build


def build_options() -> dict[str, Any]:
    """`ext_modules` and `cmdclass` of setup(); none where torch is not there to compile against."""
    toolkit = find_toolkit()
    if toolkit is not None:
        os.environ["CUDA_HOME"] = str(toolkit)  # torch.utils.cpp_extension reads it when it is imported
    try:
        import pybind11  # noqa: F401
        import torch
    except ImportError as error:
        print(f"vlkd: the extension is not built, because: {error}", file=sys.stderr)
        return {}
    no_cuda = why_no_cuda(toolkit, torch.version.cuda)
    if no_cuda is not None and flag("FORCE_CUDA"):
        sys.exit(f"vlkd: FORCE_CUDA is set, but {no_cuda}.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("MAX_JOBS", str(cores))
    extension = make_extension(toolkit if no_cuda is None else None)
    return {"ext_modules": [extension], "cmdclass": {"build_ext": make_command(toolkit, no_cuda)}}


if __name__ == "__main__":
    setup(**build_options())
