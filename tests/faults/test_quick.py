"""The quick part of the fault suite: a fault of each sort, each with a sale of its own."""

import io

from tests.faults.report import Report
from tests.faults.suite import all_faults, run_all


async def test_no_promise_breaks_under_a_fault_of_each_sort() -> None:
    chosen = [fault for fault in all_faults() if fault.quick]
    said = io.StringIO()
    report = Report(seed=1, out=said)
    await run_all(chosen, 1, report, judges_times=False)
    assert report.passed, said.getvalue()
    assert len(report.figures()["results"]) == len(chosen)
