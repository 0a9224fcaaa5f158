"""Progress as plain lines."""

import io

from tpo_graph.cli.display import ModelLoading, PhaseBegan, PhaseEnded, PlainReporter, Waiting


def test_a_long_wait_is_not_silent():
    times = iter([0.0, 0.0, 10.0, 25.0, 26.0, 30.0, 45.0, 51.0])
    file = io.StringIO()
    with PlainReporter(file, clock=lambda: next(times)) as reporter:
        reporter.show(ModelLoading("policy", "local"))
        reporter.show(Waiting())
        reporter.show(Waiting())
        reporter.show(PhaseBegan(0, "sample", "drawing 5 candidates"))
        reporter.show(Waiting())
        reporter.show(Waiting())
        reporter.show(PhaseEnded(0, "sample", "5 candidates", "", (), 25.0))
    assert file.getvalue().splitlines() == [
        "[    0.0s] policy local: loading",
        "[   25.0s] still loading",
        "[   45.0s] step 0 sample: still drawing 5 candidates",
        "[   51.0s] step 0 sample: 5 candidates (25.0 s)",
    ]
