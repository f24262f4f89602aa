"""A process that waits for one that can't answer is ended when a third one is gone."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch.distributed as dist

from mmssl.distributed import watch
from mmssl.distributed.group import Group
from mmssl.distributed.launch import joined
from mmssl.errors import InputError, LostProcess
from mmssl.signals import StopOnSignal
from tests.processes import forked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo"),
]

PATIENCE = 120  # seconds in which processes must start and end; a hang would last an hour
GRACE = 1.0


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    err: str


class Members:
    """Processes that have joined and run one function."""

    def __init__(
        self, folder: Path, size: int, act: Callable[[Group], None], missing: int = 0
    ) -> None:
        self.folder = folder
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = forked(__name__)
        self.processes: list[Any] = [
            context.Process(target=_join, args=(rank, size, self.store.port, folder, act))
            for rank in range(size - missing)
        ]
        for process in self.processes:
            process.start()
        kind = "err" if missing else "ready"
        _until(lambda: all((folder / f"{n}.{kind}").exists() for n in range(len(self.processes))))

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def send(self, rank: int, number: int) -> None:
        os.kill(self.processes[rank].pid, number)

    def end_of(self, rank: int) -> Ended:
        self.processes[rank].join(PATIENCE)
        code = self.processes[rank].exitcode
        assert code is not None, "the process has not ended"
        return Ended(code, (self.folder / f"{rank}.err").read_text())


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _join(rank: int, size: int, port: int, folder: Path, act: Callable[[Group], None]) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True", OMP_NUM_THREADS="1",
    )  # fmt: skip
    watch._GRACE_SECONDS = GRACE
    with open(folder / f"{rank}.err", "w") as file:
        os.dup2(file.fileno(), 2)
    try:
        with StopOnSignal() as stop, joined("data", "cpu") as (group, _):
            stop.requested()
            (folder / f"{rank}.ready").touch()
            act(group)
    except (InputError, LostProcess) as error:  # as the command line does
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1 if isinstance(error, LostProcess) else 2)


def wait_together(group: Group) -> None:
    while True:
        group.wait()
        time.sleep(0.01)


def compute(group: Group) -> None:
    time.sleep(3600)


def wait_for_the_last(group: Group) -> None:
    (compute if group.rank == group.size - 1 else wait_together)(group)


def fail_in_the_second(group: Group) -> None:
    if group.rank == 1:
        raise InputError("the second process failed")
    compute(group)


def leave_one_by_one(group: Group) -> None:
    time.sleep(group.rank * 3 * GRACE)


LOST = "error: lost the connection to another process of the run, which failed or was killed: "


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_waits_for_one_that_is_stopped(tmp_path, killed):
    with Members(tmp_path, 3, wait_together) as members:
        members.send(2, signal.SIGSTOP)
        time.sleep(0.5)  # now the others wait for it
        members.send(killed, signal.SIGKILL)
        end = members.end_of(1 - killed)
    assert end.code == 1 and end.err.startswith(LOST), end


def test_a_process_that_does_not_communicate(tmp_path):
    with Members(tmp_path, 3, compute) as members:
        members.send(0, signal.SIGKILL)
        ends = [members.end_of(rank) for rank in (1, 2)]
    assert [end.code for end in ends] == [1, 1]
    (err,) = [end.err for end in ends if end.err]  # one of them says why
    assert err.startswith(LOST) and err.count("\n") == 1


def test_an_error_ends_processes_that_do_not_communicate(tmp_path):
    with Members(tmp_path, 3, fail_in_the_second) as members:
        ends = [members.end_of(rank) for rank in range(3)]
    assert ends[1] == Ended(2, "error: the second process failed\n")
    assert ends[0] == ends[2] == Ended(1, "")  # they do not repeat it


def test_a_second_signal_ends_a_process_that_waits_for_another(tmp_path):
    with Members(tmp_path, 2, wait_for_the_last) as members:
        members.send(0, signal.SIGTERM)
        time.sleep(1.5)
        members.send(0, signal.SIGTERM)
        end = members.end_of(0)
    assert end == Ended(128 + signal.SIGTERM, "interrupted\n")


def test_a_signal_ends_a_process_whose_other_is_missing(tmp_path):
    with Members(tmp_path, 2, compute, missing=1) as members:
        time.sleep(1.0)  # now it waits for the other one to connect
        members.send(0, signal.SIGTERM)
        assert members.end_of(0) == Ended(128 + signal.SIGTERM, "interrupted\n")


def test_leaving_in_good_order_is_no_loss(tmp_path):
    with Members(tmp_path, 3, leave_one_by_one) as members:
        assert [members.end_of(rank) for rank in range(3)] == [Ended(0, "")] * 3
