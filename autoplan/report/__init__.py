"""The result for people."""

from autoplan.report.conflict import no_plan_error
from autoplan.report.console import print_report
from autoplan.report.graph_data import graph_dot, graph_json
from autoplan.report.graph_text import graph_text
from autoplan.report.plan_text import plan_text
from autoplan.report.search_report import search_report

__all__ = [
    "graph_dot",
    "graph_json",
    "graph_text",
    "no_plan_error",
    "plan_text",
    "print_report",
    "search_report",
]
