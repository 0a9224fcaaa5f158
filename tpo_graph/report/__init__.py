"""A run as a page: the document of a run, read back from its file, and the HTML that shows it."""

from tpo_graph.report.document import RunDocument, read_run
from tpo_graph.report.page import report_page

__all__ = ["RunDocument", "read_run", "report_page"]
