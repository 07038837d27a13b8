"""The result for people."""

from autoplan.report.conflict import no_plan_error
from autoplan.report.console import print_report
from autoplan.report.plan_text import plan_text
from autoplan.report.search_report import search_report

__all__ = ["no_plan_error", "plan_text", "print_report", "search_report"]
