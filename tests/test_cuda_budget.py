"""The instruction budget: how machine code is read, and what the committed table promises."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tools import cuda_budget, cuda_prediction, sass

# A loop of three ways: a masked tile takes longer; the copy is left out after the last tile.
LISTING = """
.text.first:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0020*/                   HMMA.16816.F32.BF16 R8, R4, R6, RZ ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR4][R6.64] ;
.L_x_2:
        /*0050*/               @P1 BRA `(.L_x_3) ;
        /*0060*/                   ISETP.GE.AND P2, PT, R1, R2, PT ;
        /*0070*/                   FSEL R8, R8, RZ, P2 ;
.L_x_3:
        /*0080*/                   MUFU.EX2 R8, R8 ;
        /*0090*/                   FADD R9, R9, R8 ;
        /*00a0*/               @P3 BRA `(.L_x_1) ;
.L_x_4:
        /*00b0*/                   BRA `(.L_x_4) ;
	.section	.text.second,"ax",@progbits
.text.second:
        /*0000*/                   EXIT ;
"""


def test_the_way_without_masks_and_with_the_copy_is_counted():
    blocks = dict(sass.kernels(LISTING))
    assert list(blocks) == ["first", "second"]
    loop = sass.main_loop(blocks["first"])
    assert loop is not None and sass.main_loop(blocks["second"]) is None
    mix = sass.one_pass(blocks["first"], loop)
    assert mix == {"shared": 1, "tensor": 1, "copy": 1, "MUFU": 1, "FMA": 1, "control": 3}
    assert sass.one_pass(blocks["first"], loop, longest=True).total() == mix.total() + 2
    assert sass.flop(blocks["first"], loop) == 2 * 16 * 8 * 16


# A loop over chunks with more products, then one that stores; the way around the second is shorter.
STORES = """
.text.one:
.L_x_1:
        /*0000*/                   DFMA R8, R4, R6, R8 ;
        /*0010*/                   DFMA R8, R4, R6, R8 ;
        /*0020*/               @P0 BRA `(.L_x_1) ;
        /*0030*/               @P1 BRA `(.L_x_3) ;
.L_x_2:
        /*0040*/                   FFMA R8, R4, R6, R8 ;
        /*0050*/                   STG.E desc[UR4][R6.64], R8 ;
        /*0060*/               @P2 BRA `(.L_x_2) ;
.L_x_3:
        /*0070*/                   EXIT ;
"""


def test_the_loop_of_a_class_or_an_opcode_and_a_whole_thread():
    blocks = dict(sass.kernels(STORES))["one"]
    by_class, by_opcode = sass.main_loop(blocks), sass.main_loop(blocks, by="STG")
    assert by_class is not None and sass.one_pass(blocks, by_class)["FMA"] == 2
    assert by_opcode is not None and sass.one_pass(blocks, by_opcode)["global"] == 1
    assert sass.whole(blocks) == {"FMA": 3, "global": 1, "control": 4}


def budget(instructions: int, spilled: int = 0) -> cuda_budget.Budget:
    kernel = cuda_budget.KERNELS[0]
    mix = sass.Counter({"tensor": 32, "ALU": instructions - 32})
    return cuda_budget.Budget(kernel, mix, 32 * 4096, 100, spilled)


def test_growth_and_spills_fail():
    name = cuda_budget.KERNELS[0].name
    page = f"text {cuda_budget.BEGIN}\n{cuda_budget.tables([budget(300)])}\n{cuda_budget.END}"
    assert cuda_budget.committed(page) == {name: 300}
    assert cuda_budget.check([budget(330)], page) == []
    (line,) = cuda_budget.check([budget(331)], page)
    assert line == f"{name}: 331 instructions in a pass, 300 before"
    (line,) = cuda_budget.check([budget(300, spilled=8)], page)
    assert "8 bytes of registers are spilled" in line


def test_bounds():
    """N = 64k, forward: 128 clocks of products for each tile of 16 x 64 on 4 x 132 units."""
    bounds = budget(310).bounds(65536)
    tiles = 65536**2 * 2 / (16 * 64)
    assert bounds["tensor"] == pytest.approx(tiles * 32 / (132 * 1.755e6))
    assert bounds["issue"] == pytest.approx(tiles * 310 / (4 * 132 * 1.755e6))


def test_every_kernel_is_in_the_table():
    page = cuda_budget.PAGE.read_text(encoding="utf-8")
    assert set(cuda_budget.committed(page)) == {k.name for k in cuda_budget.KERNELS}


def test_every_kernel_of_the_sources_has_a_row():
    """A kernel in a header is compiled with a source of the same folder."""
    for path in sorted((cuda_budget.ROOT / "csrc/ops").glob("*/*.cu*")):
        code = path.read_text(encoding="utf-8")
        own = str(
            path.relative_to(cuda_budget.ROOT).parent / (path.name if path.suffix == ".cu" else "")
        )
        patterns = [k.pattern for k in cuda_budget.KERNELS if k.source.startswith(own)]
        for name in re.findall(r"__global__[^;{]*?(\w+_kernel)\(", code):
            assert any(re.search(rf"(\b|\d|_){name}", p) for p in patterns), f"{path.name}: {name}"


def test_a_missing_tool_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["cuda_budget"])
    assert cuda_budget.main() == 2
    assert capsys.readouterr().err.startswith("error: nvcc is neither in")


@pytest.mark.slow
def test_no_loop_has_grown():
    for tool in ("nvcc", "nvdisasm"):
        try:
            cuda_budget.find(tool)
        except cuda_budget.Missing as error:
            pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, "-m", "tools.cuda_budget", "--check"],
        cwd=cuda_budget.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_predictions():
    """Exact bounds over what is assumed to be reached; the critic stays near its bytes."""
    found = budget(310)
    for n, line in zip(cuda_prediction.SIZES, cuda_prediction.rows([found]), strict=True):
        assert line[2] == "issue" and float(line[3]) == pytest.approx(
            found.bounds(n)["issue"], 0.01
        )
        assert float(line[4]) > found.bounds(n)["issue"] / cuda_prediction.OVERLAP
    assert cuda_prediction.filled(65536) == pytest.approx(512 / 528)
    page = cuda_budget.NOTES.read_text(encoding="utf-8")
    committed = [line for line in page.splitlines() if line.startswith("| critic of TikTok")]
    assert len(committed) == 2
    for line in committed:
        assert float(line.split("|")[-2]) <= 3
