"""`mmssl doctor`: shows the build and the backend of each op."""

from __future__ import annotations

import argparse

from mmssl.cli.common import Commands


def add(commands: Commands) -> None:
    """Register the command."""
    doctor = commands.add_parser("doctor", help="show the build and the backend of each op")
    doctor.set_defaults(run=_doctor)


def _doctor(_arguments: argparse.Namespace) -> int:
    from mmssl.doctor import report_lines

    print("\n".join(report_lines()))
    return 0
