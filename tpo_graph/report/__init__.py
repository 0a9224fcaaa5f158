"""A run as a page, and as a log: the document of a run, read back from its file, and what shows it."""

from tpo_graph.report.document import RunDocument, read_run
from tpo_graph.report.page import report_page

__all__ = ["RunDocument", "read_run", "report_page"]
