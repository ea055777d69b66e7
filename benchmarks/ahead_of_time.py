"""Compiles the Triton kernels without a GPU, with exactly the arguments that the ops launch them with.

An op's `launch` is run on tensors without storage while its kernels are replaced by recorders; each recorded launch is
specialised as Triton's own launcher would and compiled for the given architecture.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from vlkd_kernels.triton_attention import Gpu

# What is compiled, and whom for: an op's launch sees the GPU where it asks for one.
GPUS = {80: Gpu((8, 0), 163 * 1024, 108), 90: Gpu((9, 0), 227 * 1024, 132), 100: Gpu((10, 0), 227 * 1024, 148)}
ARCHITECTURES = tuple(GPUS)
LEAST_SHARED_MEMORY = 99 * 1024  # of GPUs with sm_80's matrix instructions: sm_86, sm_89, sm_120
_OPTIONS = ("num_warps", "num_stages", "maxnreg")
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


class Launch(NamedTuple):
    """One launch of a kernel as an op makes it."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]


class Compiled(NamedTuple):
    """What the compiler says of a kernel for one architecture."""

    registers: int
    stack: int  # bytes a thread spills
    shared: int  # bytes a block
    instructions: tuple[str, ...]  # matrix instructions in the machine code
    precisions: tuple[str, ...]  # input precisions of its products, from the IR
    narrow: tuple[str, ...]  # arguments that it multiplies in 32 bits, sizes and strides among them


def record(module: ModuleType, call: Callable[[], object]) -> list[Launch]:
    """The launches that `call` makes of the kernels of an op's Triton module; nothing is run."""
    launches: list[Launch] = []
    with ExitStack() as stack:
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction) and name.endswith("_kernel"):
                stack.enter_context(mock.patch.object(module, name, _Recorder(value, launches)))
        call()
    return launches


class _Recorder:
    """Stands for a kernel: kernel[grid](...) appends to a list."""

    def __init__(self, kernel: JITFunction, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **named: Any) -> None:
            options = {key: named.pop(key) for key in _OPTIONS if key in named}
            bound = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
            self.launches.append(Launch(self.kernel, {key: bound[key] for key in self.kernel.arg_names}, options))

        return launch


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compile one recorded launch for sm_<architecture> and read the result."""
    signature, constants, attributes = {}, {}, {}
    for index, (name, value) in enumerate(launch.arguments.items()):
        constexpr = launch.kernel.params[index].is_constexpr or (type(value) is int and value == 1)
        signature[name] = "constexpr" if constexpr else _type(value)
        if constexpr:
            constants[(index,)] = value
        elif isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)
    registers, stack = _resources(compiled.asm["cubin"])
    # To read the machine code takes a third of a second; without a product in it there is no instruction to be found.
    code = _machine_code(compiled.asm["cubin"]) if "tt.dot" in compiled.asm["ttir"] else ""
    return Compiled(
        registers,
        stack,
        compiled.metadata.shared,
        tuple(sorted(set(re.findall(r"\b(HMMA|HGMMA|UTC\w*MMA)\b", code)))),
        tuple(sorted(set(re.findall(r"inputPrecision = (\w+)", compiled.asm["ttir"])) or _default_precision(compiled))),
        _narrow(compiled.asm["ttir"], list(launch.arguments)),
    )


def _narrow(ir: str, arguments: list[str]) -> tuple[str, ...]:
    """The arguments that are operands of 32-bit products, as they are or spread over a tensor."""
    origin = {name: name for name in arguments}
    for spread, name in re.findall(r"%(\w+) = tt\.splat %(\w+)", ir):
        if name in origin:
            origin[spread] = origin[name]
    products = re.findall(r"arith\.muli %(\w+), %(\w+)\b.* : (?:tensor<[\dx]*)?i32\b", ir)
    return tuple(sorted({origin[name] for pair in products for name in pair if name in origin}))


def _default_precision(compiled: Any) -> set[str]:
    """The IR leaves `ieee`, its default, unsaid."""
    return {"ieee"} if "tt.dot" in compiled.asm["ttir"] else set()


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    raise TypeError(f"no Triton type for a {type(value).__name__}")


@contextmanager
def _cubin(content: bytes) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(content)
        yield str(path)


def tool(name: str, *arguments: str) -> str:
    """What one of the binary utilities that Triton brings prints."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _resources(content: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    with _cubin(content) as path:
        usage = tool("cuobjdump", "--dump-resource-usage", path)
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if match is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {usage}")
    return int(match[1]), int(match[2])


def _machine_code(content: bytes) -> str:
    with _cubin(content) as path:
        return tool("nvdisasm", "--print-code", "--no-dataflow", path)
