"""What every GPU kernel costs before it ever runs: registers, spills, shared memory, matrix instructions.

    python -m benchmarks.static_table            compile the quick part, print it as JSON
    python -m benchmarks.static_table --all      compile everything
    python -m benchmarks.static_table --write    compile everything and rewrite static_table.json

Triton's kernels are compiled here. The quick part is bfloat16 at one size on every architecture, and float32 and float16 on
sm_90; tests hold it to the committed table. csrc's kernels are read from the installed extension, if it has any; to write the table
they are built for every architecture. Registers depend on the compiler, so Triton's kernels have a table for each version, the oldest
and the newest that wrote one (`.ci/oldest` writes the oldest's), and csrc's say which CUDA made them. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from packaging.version import Version

from benchmarks.ahead_of_time import ARCHITECTURES, GPUS, Launch, compile_launch, record
from benchmarks.csrc_kernels import built_kernels, installed_kernels
from vlkd_kernels.attention_mse import triton as attention_mse
from vlkd_kernels.distill_attention import triton as distill_attention
from vlkd_kernels.token_nce import triton as token_nce

PATH = Path(__file__).with_name("static_table.json")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Case(NamedTuple):
    """One call of an op; its launches are compiled for every architecture, in the quick part for `quick` alone."""

    name: str
    launches: Callable[[int], list[Launch]]  # on sm_<architecture>
    quick: tuple[int, ...]


def cases() -> Iterator[Case]:
    """Every dtype, short and long heads, head widths up to 256, both distances; masks and dropout present."""
    for name, dtype in DTYPES.items():
        quick = ARCHITECTURES if dtype == torch.bfloat16 else (90,)
        for length in (50, 128, 197):
            for width_s, width_t in ((32, 32), (32, 64), (64, 64), (128, 128)):
                for distance in ("mse", "kl"):
                    case = f"attention_mse/{name}/{distance}/L{length}/{width_s}/{width_t}"
                    tested = quick if (length, width_s, distance) == (197, 64, "mse") else ()
                    yield Case(case, _attention(dtype, length, width_s, width_t, distance), tested)
        yield Case(f"attention_mse/{name}/mse/L512/64/64", _attention(dtype, 512, 64, 64, "mse"), quick)
        for width in (128, 256):
            yield Case(
                f"attention_mse/{name}/mse/L512/{width}/{width}", _attention(dtype, 512, width, width, "mse"), ()
            )
        yield Case(f"attention_mse/{name}/kl/L512/64/64", _attention(dtype, 512, 64, 64, "kl"), ())
        yield Case(f"distill_attention/{name}/mse/64", _distill(dtype, 64, "mse"), quick)
        for width in (128, 256):
            yield Case(f"distill_attention/{name}/mse/{width}", _distill(dtype, width, "mse"), ())
        yield Case(f"distill_attention/{name}/kl/64", _distill(dtype, 64, "kl"), ())
        yield Case(f"token_nce/{name}/bounded/768", _nce(dtype, learned=False), quick)
        yield Case(f"token_nce/{name}/learned/768", _nce(dtype, learned=True), quick)
        for tokens in (256, 2048):
            yield Case(f"token_nce/{name}/bounded/{tokens} x 768", _nce(dtype, learned=False, tokens=tokens), ())
        yield Case(f"token_nce/{name}/bounded/33", _nce(dtype, learned=False, width=33), quick[:1])


def compile_cases(quick: bool) -> dict[str, dict[str, Any]]:
    """One row a kernel, case and architecture."""
    rows = {}
    for case in cases():
        for architecture in case.quick if quick else ARCHITECTURES:
            # A kernel that a call launches more than once is compiled in its last, fullest form.
            launches = {launch.kernel.__name__: launch for launch in case.launches(architecture)}
            for name, launch in launches.items():
                key = f"{case.name}/{name.removesuffix('_kernel')}/sm_{architecture}"
                rows[key] = launch.options | compile_launch(launch, architecture)._asdict()
    return rows


def with_oldest(made: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The tables of two versions of Triton: what was made now, and of those before the oldest, or if that was made now the newest."""
    others = sorted(before.keys() - made.keys(), key=Version)
    if not others:
        return made
    is_oldest = all(Version(version) < Version(others[0]) for version in made)
    kept = others[-1] if is_oldest else others[0]
    return dict(sorted((made | {kept: before[kept]}).items(), key=lambda item: Version(item[0])))


def _attention(
    dtype: torch.dtype, length: int, width_s: int, width_t: int, distance: str
) -> Callable[[int], list[Launch]]:
    def launches(architecture: int) -> list[Launch]:
        s, t = (torch.empty(16, 12, length, width, dtype=dtype, device="meta") for width in (width_s, width_t))
        mask = torch.empty(16, 1, 1, length, dtype=torch.bool, device="meta")
        query_mask = torch.empty(16, length, dtype=torch.bool, device="meta")
        arguments = (s, s, t, t, 0.125, 0.125, mask, query_mask, False, distance, True, True)
        with mock.patch.object(attention_mse, "gpu", lambda _: GPUS[architecture]):
            return record(attention_mse, lambda: attention_mse.launch(*arguments))

    return launches


def _distill(dtype: torch.dtype, width: int, distance: str) -> Callable[[int], list[Launch]]:
    def launches(_: int) -> list[Launch]:
        x = torch.empty(16, 12, 197, width, dtype=dtype, device="meta")
        mask = torch.empty(16, 1, 1, 197, dtype=torch.bool, device="meta")
        query_mask = torch.empty(16, 197, dtype=torch.bool, device="meta")
        seed = torch.empty(1, dtype=torch.int64, device="meta")
        numbers = (0.125, 0.125, 0.1, False, distance)

        def call() -> None:
            out, loss, _, row_stats = distill_attention.launch(x, x, x, x, x, None, mask, query_mask, seed, *numbers)
            distill_attention.launch_backward(x, loss, out, row_stats, x, x, x, x, x, mask, seed, *numbers)

        return record(distill_attention, call)

    return launches


def _nce(dtype: torch.dtype, learned: bool, tokens: int = 16384, width: int = 768) -> Callable[[int], list[Launch]]:
    """With ids, and a temperature that is a number, or a tensor; as many tokens as have the largest tiles, or fewer."""

    def launches(architecture: int) -> list[Launch]:
        h = torch.empty(tokens, width, dtype=dtype, device="meta")
        queue = torch.empty(16384, width, dtype=dtype, device="meta")
        fill, queue_ids, ids = (torch.empty(n, dtype=torch.int64, device="meta") for n in ((), (16384,), (tokens,)))
        mask = torch.empty(tokens, dtype=torch.bool, device="meta")
        number, tensor = (None, torch.empty((), device="meta")) if learned else (0.07, None)
        arguments = (h, h, queue, fill, queue_ids, mask, ids, number, tensor, True, False, True, True)
        with mock.patch.object(token_nce, "gpu", lambda _: GPUS[architecture]):
            return record(token_nce, lambda: token_nce.launch(*arguments))

    return launches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every case, not the quick part alone")
    parser.add_argument("--write", action="store_true", help=f"compile everything and rewrite {PATH.name}")
    options = parser.parse_args()
    kernels = {triton.__version__: compile_cases(quick=not (options.all or options.write))}
    cuda, csrc = installed_kernels()
    if options.write:
        before = json.loads(PATH.read_text())
        kernels = with_oldest(kernels, before["kernels"])
        if shutil.which("nvcc") and torch.version.cuda:
            cuda, csrc = built_kernels(ARCHITECTURES, jobs=os.cpu_count() or 1)
        else:  # what another machine found stays
            cuda, csrc = before["cuda"], before["csrc"]
    table = {"kernels": kernels, "cuda": cuda, "csrc": csrc}
    text = json.dumps(table, indent=1) + "\n"
    if options.write:
        PATH.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
