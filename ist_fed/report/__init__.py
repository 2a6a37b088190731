"""What a run did, as pictures and a page that explains itself; and several runs beside each other."""

from ist_fed.report.compare import write_comparison
from ist_fed.report.methods import method_cell, method_rows, write_methods
from ist_fed.report.rows import comparison_rows
from ist_fed.report.story import write_report

__all__ = ["comparison_rows", "method_cell", "method_rows", "write_comparison", "write_methods", "write_report"]
