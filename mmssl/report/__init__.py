"""The HTML report of a run directory."""

from mmssl.report.run import write_run_report

__all__ = ["write_run_report"]
