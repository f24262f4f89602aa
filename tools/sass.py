"""Reads `nvdisasm -c` listings: kernels, their loops, the instructions of a pass through a loop."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

# Class -> beginnings of opcodes. What is in none of them is ALU; NOP is not counted.
CLASSES = {
    "tensor": ("HMMA", "HGMMA", "QGMMA", "DMMA"),
    "MUFU": ("MUFU",),
    "FMA": ("FFMA", "FMUL", "FADD", "DFMA", "DMUL", "DADD"),
    "shared": ("LDS", "STS", "LDSM", "STSM", "SHFL"),
    "copy": ("LDGSTS", "UBLKCP", "UTMALDG"),  # to shared memory, asynchronous
    "global": ("LDG", "STG", "LD.", "ST."),
    "local": ("LDL", "STL"),
    "control": ("BRA", "BSSY", "BSYNC", "BAR", "WARPSYNC", "EXIT", "DEPBAR", "LDGDEPBAR", "CALL"),
}


def class_of(opcode: str) -> str:
    """Return the class of an opcode with its modifiers, such as LDSM.16.M88.4."""
    base = opcode.split(".")[0]
    for name, heads in CLASSES.items():
        if base in heads or any(h.endswith(".") and opcode.startswith(h) for h in heads):
            return name
    return "ALU"


@dataclass
class Block:
    """Instructions without a jump between them."""

    opcodes: list[str] = field(default_factory=list)
    next: list[int] = field(default_factory=list)

    def mix(self) -> Counter[str]:
        """Return how many instructions of each class there are."""
        return Counter(class_of(o) for o in self.opcodes if o != "NOP")


def kernels(listing: str) -> Iterator[tuple[str, list[Block]]]:
    """Yield (mangled name, blocks in the order of addresses) of every kernel of a listing."""
    for section in re.split(r"^\.text\.", listing, flags=re.M)[1:]:
        name, _, body = section.partition(":")
        yield name, _blocks(body.split("\n.section", 1)[0])


def _blocks(body: str) -> list[Block]:
    blocks, labels, jumps = [Block()], {}, {}
    for line in body.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            if blocks[-1].opcodes:
                blocks.append(Block())
            labels[label[1]] = len(blocks) - 1
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            predicate, opcode, rest = found[1], found[2], found[3]
            blocks[-1].opcodes.append(opcode)
            base = opcode.split(".")[0]
            if base not in ("BRA", "EXIT", "RET", "BRX", "JMP"):
                continue
            target = re.search(r"`\((\.L_x_\d+)\)", rest)
            # An unlikely divergent jump out of line, such as that of BRA.DIV, comes back.
            always = predicate is None and not re.match(r"\s*(U?P|!U?P)", rest) and base == "BRA"
            always = always and ".DIV" not in opcode and ".CONV" not in opcode
            jumps[len(blocks) - 1] = (target[1] if target else None, not always and (
                base == "BRA" or predicate is not None))  # fmt: skip
            blocks.append(Block())
    for n, block in enumerate(blocks):
        target, falls = jumps.get(n, (None, True))
        if target in labels:
            block.next.append(labels[target])
        if falls and n + 1 < len(blocks):
            block.next.append(n + 1)
    return blocks


def loops(blocks: list[Block]) -> list[tuple[int, int]]:
    """Return (first, last) block of every loop, inner ones first."""
    ends: dict[int, int] = {}
    for n, block in enumerate(blocks):
        for to in block.next:
            if to <= n:
                ends[to] = max(n, ends.get(to, 0))
    return sorted(ends.items(), key=lambda loop: loop[1] - loop[0])


def main_loop(
    blocks: list[Block], longest: bool = False, trips: int = 1, by: str = "FMA"
) -> tuple[int, int] | None:
    """Return the innermost loop with the most tensor instructions in a pass.

    Of loops with as many products the one whose longest way is shortest counts, unless longest ways
    are asked for: kernels have another loop for temperatures at which every row needs a maximum.

    Args:
        blocks: of the kernel.
        longest: as in :func:`one_pass`.
        trips: as in :func:`one_pass`.
        by: the class, or the beginning of the opcode, whose number decides where no loop has a
            tensor instruction.
    """

    def work(loop: tuple[int, int]) -> tuple[int, int, int]:
        mix = one_pass(blocks, loop, longest, trips)
        most = one_pass(blocks, loop, True, trips).total() if mix["tensor"] and not longest else 0
        inside = [code for block in blocks[loop[0] : loop[1] + 1] for code in block.opcodes]
        return mix["tensor"], -most, mix[by] or sum(code.startswith(by) for code in inside)

    found = loops(blocks)
    return max(found, key=work) if found else None


def one_pass(
    blocks: list[Block], loop: tuple[int, int], longest: bool = False, trips: int = 1,
    copies: bool = True,
) -> Counter[str]:  # fmt: skip
    """Count the instructions of a pass from the top of a loop back to it.

    Of several ways through the loop those with the most products and copies to shared memory count,
    and of these the shortest: the way over a tile without masks.

    Args:
        blocks: of the kernel.
        loop: its first and last block.
        longest: count the longest way instead, an upper bound.
        trips: how often an innermost loop inside this one is run.
        copies: prefer ways with copies; of warps that leave these to another one, those without.
    """
    first, last = loop
    inside = [x for x in loops(blocks) if first <= x[0] and x[1] <= last and x != loop]
    outer = [x for x in inside
             if not any(y[0] <= x[0] and x[1] <= y[1] and y != x for y in inside)]  # fmt: skip
    of_block = {n: x for x in outer for n in range(x[0], x[1] + 1)}
    best: dict[int, Counter[str] | None] = {}

    def score(mix: Counter[str]) -> tuple[int, int, int]:
        return (
            mix["tensor"],
            mix["copy"] * (1 if copies else -1),
            mix.total() * (1 if longest else -1),
        )

    for n in range(last, first - 1, -1):
        own, after = blocks[n].mix(), blocks[n].next
        if n in of_block:
            begin, end = of_block[n]
            if n != begin:
                continue
            leaf = not any(begin <= x[0] and x[1] <= end and x != (begin, end) for x in inside)
            body = one_pass(blocks, (begin, end), longest, trips, copies)
            own = Counter({c: (trips if leaf else 1) * count for c, count in body.items()})
            after = [t for m in range(begin, end + 1) for t in blocks[m].next
                     if not begin <= t <= end]  # fmt: skip
        ways = []
        for to in after:
            if to == first:
                ways.append(own)
            elif n < to <= last and (rest := best.get(to)) is not None:
                ways.append(own + rest)
        best[n] = max(ways, key=score) if ways else None
    return best[first] or Counter()


def whole(blocks: list[Block]) -> Counter[str]:
    """Count the instructions of the longest way through a kernel that runs no loop twice."""
    best: list[Counter[str]] = [Counter()] * len(blocks)
    for n in range(len(blocks) - 1, -1, -1):
        rest = [best[to] for to in blocks[n].next if to > n]
        best[n] = blocks[n].mix() + max(rest, key=lambda mix: mix.total(), default=Counter())
    return best[0]


def flop(blocks: list[Block], loop: tuple[int, int]) -> float:
    """Return the FLOP of the tensor instructions of a loop, each counted once."""
    total = 0
    for block in blocks[loop[0] : loop[1] + 1]:
        for opcode in block.opcodes:
            # A warp's share of a product of four warps has 16 rows as well.
            if shape := re.match(r"(?:HMMA\.16|HGMMA\.64x)(\d+?)x?(8|16)\.", opcode):
                total += 2 * 16 * int(shape[1]) * int(shape[2])
    return total
