"""`mmssl doctor`: what was built and which backend each op takes."""

from __future__ import annotations

import argparse

from mmssl.cli.common import Commands


def add(commands: Commands) -> None:
    """Registers the command."""
    doctor = commands.add_parser("doctor", help="what was built and which backend each op takes")
    doctor.set_defaults(run=_doctor)


def _doctor(_arguments: argparse.Namespace) -> int:
    from mmssl.doctor import report_lines

    print("\n".join(report_lines()))
    return 0
