"""Plots: curves that add up, bars in order, names without markup."""

from tokenmill.report.plots import bars, matrix, plot_label, throughput
from tokenmill.report.throughput import ReplicaThroughput


def curve(run: str, replica: str, *rates: float) -> ReplicaThroughput:
    """A replica's curve with a point per second from Unix time 0."""
    times = tuple(float(second) for second in range(len(rates)))
    return ReplicaThroughput(run, replica, 1, 1, 1, 1.0, times, rates)


def test_one_replica_has_one_line() -> None:
    """Times are in UTC, and the line has a gap after each run."""
    figure = throughput("t", [curve("a", "x", 3.0, 4.0), curve("b", "x", 5.0)])
    (line,) = figure.data
    assert line["y"] == [3.0, 4.0, None, 5.0, None]
    assert line["x"][:2] == ["1970-01-01T00:00:00.000", "1970-01-01T00:00:01.000"]


def test_several_replicas_have_a_line_each_and_a_sum() -> None:
    """If there are many, the last ones share a line; the sum includes all."""
    few = throughput("t", [curve("a", "x", 1.0, 2.0), curve("a", "y", 10.0, 20.0)])
    assert {line["name"]: line["y"][:2] for line in few.data} == {
        "all replicas": [11.0, 22.0],
        "x": [1.0, 2.0],
        "y": [10.0, 20.0],
    }
    many = throughput("t", [curve("a", f"r{number}", 1.0) for number in range(20)])
    sums = {line["name"]: line["y"][0] for line in many.data}
    assert len(sums) == 8
    assert (sums["all replicas"], sums["others"]) == (20.0, 14.0)


def test_bars_have_names_and_lengths() -> None:
    """The first bar is at the top; a plot with many bars is higher."""
    figure = bars("b", "labels", {"good": 3, "bad": 1})
    assert figure.data[0]["x"] == [3, 1]
    assert figure.layout["yaxis"]["ticktext"] == ["good", "bad"]
    assert bars("b", "labels", {str(number): 1 for number in range(50)}).height > figure.height


def test_the_rows_of_a_matrix_are_the_first_output() -> None:
    """A count of 0 is not written."""
    figure = matrix("m", "label", ["a", "b"], [[1, 2], [0, 3]], ("first", "second"))
    assert figure.data[0]["z"] == [[1, 2], [0, 3]]
    assert figure.data[0]["text"][1] == ["", "3"]
    assert figure.layout["yaxis"]["title"]["text"] == "first"


def test_names_are_escaped_and_shortened() -> None:
    """Text from rows must not be read as plotly's markup or as a formula."""
    assert plot_label("<b>a</b> $x$ &") == "&lt;b>a&lt;/b> &#36;x&#36; &amp;"
    assert len(plot_label("a" * 100)) == 28
