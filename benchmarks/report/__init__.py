"""Tables and pictures of result files: Markdown, one HTML page, and README's block."""

from benchmarks.report.page import write
from benchmarks.report.readme import write_documents

__all__ = ["write", "write_documents"]
