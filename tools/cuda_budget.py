"""Instruction budgets of the hot CUDA kernels, from their machine code: no GPU is needed.

``python -m tools.cuda_budget`` compiles the kernels for sm_90, counts what a warp executes in one
pass through the main loop, and prints registers, spills and the lower bounds that follow for the
time on an H100. ``--write`` puts the tables into docs/cuda.md, and what is predicted from them into
benchmarks/NOTES.md; ``--check`` exits 1 where a count has grown by more than 10 % since, or where a
register is spilled. Needs nvcc (in CUDA_HOME
or on PATH) and nvdisasm (there, on PATH, or from the package nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tools import cuda_prediction, sass

ROOT = Path(__file__).resolve().parents[1]
PAGE, NOTES = ROOT / "docs/cuda.md", ROOT / "benchmarks/NOTES.md"
BEGIN, END = "<!-- budget:begin -->", "<!-- budget:end -->"
GROWTH = 1.10
SIZES = cuda_prediction.SIZES

# H100 SXM: multiprocessors, clock, what a multiprocessor does per clock, bytes per second from L2.
PROCESSORS, CLOCK, L2_BYTES_S = 132, 1.755e9, 5.5e12
ISSUED, EXPONENTIALS, PRODUCT_FLOP = 4, 16, {"bf16": 4096, "tf32": 2048, "float32": 256}


@dataclass(frozen=True)
class Kernel:
    """A kernel and what one pass of a warp through its main loop covers."""

    name: str
    source: str
    pattern: str
    """What its mangled name matches."""
    unit: str
    """What a pass covers."""
    longest: bool = False
    """Count the longest way through the loop: an upper bound for kernels with masks in it."""
    copied_by: int = 1
    """One warp of this number makes all copies; what it executes for them is divided by it."""
    trips: int = 1
    """How often the innermost loops of the main one are run."""
    by: str = "FMA"
    """The class or opcode of which the main loop has most; "": count a whole thread."""
    passes: float = 0
    """Passes of all warps as a multiple of N^2, for one pair of N rows; 0: nothing is predicted."""
    operands: str = "bf16"
    l2_bytes: float = 0
    """Bytes from L2 for one pass of one warp."""


@dataclass
class Budget:
    """What was found for a kernel."""

    kernel: Kernel
    mix: Counter[str]
    flop: float
    registers: int
    spilled: int

    @property
    def name(self) -> str:
        """What the tables call the kernel."""
        return self.kernel.name

    def bounds(self, n: int) -> dict[str, float]:
        """Return milliseconds of issue, products, exponentials and L2 for N rows."""
        passes = self.kernel.passes * n * n
        clocks = PROCESSORS * CLOCK / 1e3
        return {
            "issue": passes * self.mix.total() / ISSUED / clocks,
            "tensor": passes * self.flop / PRODUCT_FLOP[self.kernel.operands] / clocks,
            "MUFU": passes * self.mix["MUFU"] * 32 / EXPONENTIALS / clocks,
            "L2": passes * self.kernel.l2_bytes / L2_BYTES_S * 1e3,
        }


def _passes(way: str, columns: int) -> float:
    """Passes over 16 rows and some columns; N rows meet 2 N columns, 3 N in the gradient."""
    return (2 if way == "sum" else 3) / (16 * columns)


def _pipelined(way: str, terms: int, depth: int) -> Kernel:
    operands = {1: "bf16", 2: "TF32 as 2 bf16", 3: "float32 as 3 bf16"}[terms]
    return Kernel(
        f"info_nce {way}, {operands}, D <= {depth}", "csrc/ops/info_nce/mma.cu",
        rf"{way}_kernelINS\w?_5ShapeILi{terms}ELi{depth}E", "16 x 64 scores",
        trips=4 if way == "grad" and terms == 3 else 1,
        passes=_passes(way, 64), l2_bytes=64 * (depth * 2 * terms + 8) / 8,
    )  # fmt: skip


def _warpgroups(way: str, depth: int) -> Kernel:
    return Kernel(
        f"info_nce {way}, bf16, D <= {depth}, wgmma", "csrc/ops/info_nce/wgmma_sm90a.cu",
        rf"{way}_kernelINS\w?_5ShapeILi{depth}E", "16 x 64 scores", copied_by=8,
        passes=_passes(way, 64), l2_bytes=64 * (depth * 2 + 8) / 8,
    )  # fmt: skip


def _tiles(way: str, product: str, columns: int, bytes: int) -> Kernel:
    operands = {"Bf16": "bf16", "Tf32": "TF32"}[product]
    return Kernel(
        f"info_nce {way}, {operands}, tiles", "csrc/ops/info_nce/kernels.cu",
        rf"{way}_kernelINS\w?_\d+{product}ProductE(NS\w?_4bf16E|f)f", f"16 x {columns} scores",
        longest=True, trips=4, passes=_passes(way, columns), operands=operands.lower(),
        l2_bytes=columns * 64 * bytes / 4,
    )  # fmt: skip


# Source | name | pattern | what a pass covers | the class that the main loop has most of.
OTHERS = r"""
add_normalized/tables | add_normalized of two tables, float32 | 13tables_kernelIfE | 32 features |
add_normalized/tables | its backward, float32 | tables_grad_kernelIfE | 32 features | FMA
add_normalized/kernels | offset_rows forward, float32 | 13offset_kernelIfE | 32 features | global
add_normalized/kernels | offset_rows backward, float32 | offset_grad_kernelIf | 32 features | global
topk/kernels | masked_topk, parts merged, float32 | merge_kernelIffE | 32 candidates | global
similarity/kernels | similarity_tables, float32 | 13tables_kernelIfE | 32 features |
similarity/kernels | similarity_factors forward, float32 | factors_kernelIfE | 4 edges | global
similarity/kernels | similarity_factors backward, float32 | gradient_kernelIfE | 32 features | FMA
similarity/kernels | gumbel_rows, float32 | gumbel_kernelIfE | 32 edges | MUFU
similarity/kernels | stack_edges | stack_kernel | 32 edges |
bpr/batch | batch_rows, float32 | 11rows_kernelIfE | 32 features |
bpr/batch | batch_terms, float32 | terms_kernelIfE | its largest loop | global
bpr/batch | batch_terms, sums, float32 | total_kernelIfE | 32 numbers | global
bpr/batch | batch_terms backward, float32 | gradient_kernelIfE | its largest loop | global
critic/kernels | critic_norms, float32 | norms_kernelIffE | 4 x 32 columns of a row | FMA
critic/kernels | critic_terms, float32 | terms_kernelIfE | 32 rows | FMA
critic/kernels | critic_rows forward, float32 | 14grouped_kernelIffE | 32 columns of a row |
critic/kernels | critic_rows backward, float32 | ungrouped_kernelIffE | 32 columns of a copy | FMA
critic/kernels | critic_scores, float32 | scores_kernelIffE | 4 x 32 columns of a row | FMA
critic/kernels | critic_scale, float32 | scaled_kernelIffE | 32 columns of a row |
critic/kernels | critic_logits backward, float32 | logit_kernelIffE | 4 x 32 columns of a row | FMA
critic/kernels | gradient of the last layer, float32 | last_kernelIffE | 8 columns x 16 rows | FMA
bpr/kernels | bpr_loss forward, float32 | triple_kernelIffE | 4 x 32 features | FMA
bpr/kernels | bpr_loss, sums, float32 | 10sum_kernelIfE | 16 x 32 triples | global
bpr/kernels | bpr_loss backward, float32 | scatter_kernelIffE | its largest loop | FMA
propagate/kernels | spmm, long rows, float32 | join_kernelIffE | its largest loop | global
propagate/value_grad | spmm_value_grad, float32 | value_grad_kernelIffLi4ELi16E | an edge | FMA
sampling/kernels | sample_bpr, swaps | insert_kernel | 32 triples |
sampling/kernels | sample_bpr, triples | 13sample_kernel | its largest loop | global
info_nce/kernels | info_nce, norms, float32 | prepare_kernelIffE | its largest loop | FMA
info_nce/mma | info_nce, panels, bf16, D <= 64 | panel_kernelILi1ELi64E | 64 features |
info_nce/kernels | info_nce, losses, float32 | loss_kernelIffE | its largest loop | FMA
info_nce/kernels | info_nce, weights, float32 | weight_kernelIffE | 32 rows |
info_nce/kernels | info_nce, lists of anchors, float32 | anchors_kernelIffE | 32 anchors | global
info_nce/kernels | info_nce, positives, float32 | positives_kernelIffE | its largest loop | FMA
info_nce/kernels | info_nce, gradients, float32 | finish_kernelIffE | its largest loop | FMA
info_nce/kernels | info_nce, temperature, float32 | temperature_kernelIffE | 16 x 32 rows | global
keep_mask/kernels | keep_mask | keep_kernel | 128 elements |
keep_mask/kernels | drop_columns, float32 | drop_kernelIfE | 128 elements |
index/kernels | index_of_rows, lengths | pointer_kernelINS\w*12PickedLength | 32 rows | global
index/kernels | index_of_lists, lengths | pointer_kernelINS\w*10ListLength | 32 rows | global
index/kernels | index arrays, sums of columns | pointer_kernelINS\w*5Total | 32 columns | global
index/kernels | index_of_rows, edges | fill_rows_kernel | a step of the search | global
index/kernels | index_of_lists, edges | fill_lists_kernel | a step of the search | global
index/kernels | index arrays, sums of chunks | chunk_sums_kernel | 32 columns of a chunk | global
index/kernels | index arrays, places | place_kernel | 32 edges | global
index/kernels | store_lists | 12store_kernel | 32 places |
index/kernels | degree_scale | 12scale_kernel | 32 rows |
"""

KERNELS = (
    *(_pipelined(way, terms, depth)
      for terms, depth in ((1, 64), (1, 128), (1, 256), (2, 64), (2, 128), (3, 64))
      for way in ("sum", "grad")),
    *(_warpgroups(way, depth) for depth in (64, 128, 256) for way in ("sum", "grad")),
    _tiles("sum", "Bf16", 64, 2),
    _tiles("grad", "Bf16", 64, 2),
    _tiles("sum", "Tf32", 32, 4),
    _tiles("grad", "Tf32", 32, 4),
    Kernel("spmm, float32, D = 64", "csrc/ops/propagate/kernels.cu",
           r"11spmm_kernelIffLi4ELi16ELb0E", "edges of a row"),
    Kernel("masked_topk, float32", "csrc/ops/topk/kernels.cu", r"topk_kernelIffE",
           "features of 128 items x 16 users"),
    *(Kernel(f"norm_act {way}, {part}, float32", "csrc/ops/norm_act/kernels.cu",
             rf"{kernel}_kernelINS\w*{job}IffE", unit, longest=True, by=by)
      for way, job in (("forward", "7Forward"), ("backward", "8Backward"),
                       ("backward with more", "13AddedBackward"),
                       ("second backward", "14DoubleBackward"))
      for part, kernel, unit, by in (("sums", "sums", "32 columns x 4 rows", "FMA"),
                                     ("elements", "write", "32 columns x 4 rows", "STG"),
                                     ("few rows", "whole", "its largest loop", "STG"))),
    Kernel("view_attention forward, float32", "csrc/ops/view_attention/kernels.cu",
           r"forward_kernelIffE", "its largest loop", longest=True),
    Kernel("view_attention backward, float32", "csrc/ops/view_attention/kernels.cu",
           r"backward_kernelIffE", "its largest loop", longest=True),
    Kernel("add_normalized forward, float32", "csrc/ops/add_normalized/kernels.cu",
           r"add_kernelIffE", "128 features of a row", longest=True),
    Kernel("add_normalized backward, float32", "csrc/ops/add_normalized/kernels.cu",
           r"grad_kernelIffE", "128 features of a row", longest=True),
    *(Kernel(name, f"csrc/ops/{source}.cu", pattern, unit, longest=True, by=by)
      for source, name, pattern, unit, by in (
          [part.strip() for part in line.split("|")] for line in OTHERS.strip().splitlines())),
)  # fmt: skip

COLUMNS = ("tensor", "MUFU", "FMA", "shared", "copy", "global", "ALU", "control")


class Missing(Exception):
    """A tool that is not installed."""


def find(tool: str) -> str:
    """Return the path of a tool of the CUDA toolkit.

    Raises:
        Missing: It is nowhere.
    """
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    packages = [str(Path(p) / "nvidia/cu13/bin") for p in sys.path]
    places = os.pathsep.join([f"{home}/bin", os.environ.get("PATH", ""), *packages])
    found = shutil.which(tool, path=places)
    if found is None:
        hint = "set CUDA_HOME" if tool == "nvcc" else f"pip install nvidia-cuda-{tool}"
        raise Missing(f"{tool} is neither in {home}/bin nor on PATH nor installed ({hint})")
    return found


def compile_source(source: str, folder: Path) -> tuple[str, str]:
    """Return the machine code of a source for sm_90 or sm_90a, and what ptxas says about it."""
    arch = "90a" if source.endswith("_sm90a.cu") else "90"
    binary = folder / (source.replace("/", "_") + ".cubin")
    command = [find("nvcc"), "-cubin", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-O3",
               "-std=c++20"]  # fmt: skip
    done = subprocess.run(
        [*command, f"-I{ROOT / 'csrc'}", "-Xptxas", "-v", str(ROOT / source), "-o", str(binary)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"error: {source} does not compile:\n{done.stderr}")
    listing = subprocess.run(
        [find("nvdisasm"), "-c", str(binary)], capture_output=True, text=True, check=True
    ).stdout
    return listing, done.stderr


def usage(text: str, mangled: str) -> tuple[int, int]:
    """Return registers and spilled bytes of a kernel from the words of ptxas."""
    entry = text.split(f"Compiling entry function '{mangled}'", 1)[1].split("Compiling entry", 1)[0]
    registers = re.search(r"Used (\d+) registers", entry)
    spilled = re.findall(r"(\d+) bytes spill", entry)
    assert registers is not None
    return int(registers[1]), sum(map(int, spilled))


def measure() -> list[Budget]:
    """Compile and count every kernel."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for source in dict.fromkeys(k.source for k in KERNELS):
            listing, words = compile_source(source, Path(folder))
            blocks = dict(sass.kernels(listing))
            for kernel in (k for k in KERNELS if k.source == source):
                names = [name for name in blocks if re.search(kernel.pattern, name)]
                if len(names) != 1:
                    raise SystemExit(f"error: {source}: {kernel.pattern} matches {names}")
                code = blocks[names[0]]
                if not kernel.by:
                    found.append(Budget(kernel, sass.whole(code), 0, *usage(words, names[0])))
                    continue
                loop = sass.main_loop(code, kernel.longest, kernel.trips, kernel.by)
                assert loop is not None
                mix = sass.one_pass(code, loop, kernel.longest, kernel.trips)
                if kernel.copied_by > 1:
                    others = sass.one_pass(code, loop, kernel.longest, kernel.trips, copies=False)
                    mix = Counter({c: round(others[c] + (mix[c] - others[c]) / kernel.copied_by)
                                   for c in mix})  # fmt: skip
                found.append(Budget(kernel, mix, sass.flop(code, loop), *usage(words, names[0])))
    return found


def tables(budgets: list[Budget]) -> str:
    """Return both tables in Markdown."""
    head = ["kernel", "a pass covers", "instructions", *COLUMNS, "registers", "spilled bytes"]
    rows = [
        [b.kernel.name, b.kernel.unit, f"{'<= ' * b.kernel.longest}{b.mix.total()}",
         *(str(b.mix[c]) for c in COLUMNS), str(b.registers), str(b.spilled)]
        for b in budgets
    ]  # fmt: skip
    times = ["kernel", "N", "issue", "tensor", "MUFU", "L2"]
    bounds = [
        [b.kernel.name, f"{n:,}", *(f"{ms:.3g}" for ms in b.bounds(n).values())]
        for b in budgets if b.kernel.passes for n in SIZES
    ]  # fmt: skip
    return f"{_table(head, rows)}\n\nMilliseconds at least:\n\n{_table(times, bounds)}"


def predictions(budgets: list[Budget]) -> str:
    """Return what is predicted for info_nce with D = 64 and for sparse products in Markdown."""
    chosen = [b for b in budgets if re.fullmatch(r"info_nce \w+, bf16, D <= 64(, wgmma)?", b.name)]
    (spmm,) = (b.mix.total() for b in budgets if b.name == "spmm, float32, D = 64")
    tables = (
        _table(cuda_prediction.HEAD, cuda_prediction.rows(chosen)),
        _table(cuda_prediction.PRODUCT_HEAD, cuda_prediction.products(spmm)),
    )
    return "\n\n".join(tables)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def committed(page: str) -> dict[str, int]:
    """Return the instructions of every kernel in the table of a page."""
    block = page.split(BEGIN, 1)[1].split(END, 1)[0].split("Milliseconds", 1)[0]
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in block.splitlines() if "|" in line
    ]
    return {row[0]: int(row[2].removeprefix("<= ")) for row in cells[2:]}


def check(budgets: list[Budget], page: str) -> list[str]:
    """Return what is worse than the page says."""
    before, wrong = committed(page), []
    for budget in budgets:
        name, total = budget.kernel.name, budget.mix.total()
        if name not in before:
            wrong.append(f"{name}: not in the table of {PAGE.name}")
        elif total > GROWTH * before[name]:
            wrong.append(f"{name}: {total} instructions in a pass, {before[name]} before")
        if budget.spilled:
            wrong.append(f"{name}: {budget.spilled} bytes of registers are spilled")
    return wrong


def main() -> int:
    """Print, write or check."""
    parser = argparse.ArgumentParser(prog="python -m tools.cuda_budget",
                                     description=(__doc__ or "").splitlines()[0])  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="compare with docs/cuda.md")
    what.add_argument("--write", action="store_true", help="put the tables into docs/cuda.md")
    options = parser.parse_args()
    try:
        budgets = measure()
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tables(budgets))
    page = PAGE.read_text(encoding="utf-8") if options.write or options.check else ""
    for path, text in ((PAGE, tables(budgets)), (NOTES, predictions(budgets))):
        if not options.write:
            break
        before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.split(END, 1)[1]
        path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    wrong = check(budgets, page) if options.check else []
    for line in wrong:
        print(f"error: {line}; if it has to be, run python -m tools.cuda_budget --write",
              file=sys.stderr)  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
