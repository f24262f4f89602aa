"""The HTML report of runs."""

from mmssl.report.run import write_report

__all__ = ["write_report"]
