"""What is plotted: curves that add up, bars in order, names without markup."""

from tokenmill.report.plots import bars, matrix, plot_label, throughput
from tokenmill.report.throughput import ReplicaThroughput


def pace(run: str, replica: str, *rates: float) -> ReplicaThroughput:
    """A replica's curve from second 0 of 1970 on."""
    at = tuple(float(second) for second in range(len(rates)))
    return ReplicaThroughput(run, replica, 1, 1, 1, 1.0, at, rates)


def test_one_replica_has_one_line() -> None:
    """Its times are in UTC, and behind each run the line ends."""
    figure = throughput("t", [pace("a", "x", 3.0, 4.0), pace("b", "x", 5.0)])
    (line,) = figure.data
    assert line["y"] == [3.0, 4.0, None, 5.0, None]
    assert line["x"][:2] == ["1970-01-01T00:00:00.000", "1970-01-01T00:00:01.000"]


def test_several_replicas_have_a_line_each_and_their_sum() -> None:
    """Of many the last ones share a line; the sum is of all."""
    few = throughput("t", [pace("a", "x", 1.0, 2.0), pace("a", "y", 10.0, 20.0)])
    assert {line["name"]: line["y"][:2] for line in few.data} == {
        "all replicas": [11.0, 22.0],
        "x": [1.0, 2.0],
        "y": [10.0, 20.0],
    }
    many = throughput("t", [pace("a", f"r{number}", 1.0) for number in range(20)])
    sums = {line["name"]: line["y"][0] for line in many.data}
    assert len(sums) == 8
    assert (sums["all replicas"], sums["others"]) == (20.0, 14.0)


def test_a_bar_stands_beside_its_name() -> None:
    """The first one at the top; many bars take more height."""
    figure = bars("b", "labels", {"good": 3, "bad": 1})
    assert figure.data[0]["x"] == [3, 1]
    assert figure.layout["yaxis"]["ticktext"] == ["good", "bad"]
    assert bars("b", "labels", {str(number): 1 for number in range(50)}).height > figure.height


def test_a_matrix_has_the_first_in_its_lines() -> None:
    """A cell that nothing fell into is left empty."""
    figure = matrix("m", "label", ["a", "b"], [[1, 2], [0, 3]], ("first", "second"))
    assert figure.data[0]["z"] == [[1, 2], [0, 3]]
    assert figure.data[0]["text"][1] == ["", "3"]
    assert figure.layout["yaxis"]["title"]["text"] == "first"


def test_a_name_is_no_markup() -> None:
    """Plotly draws a few elements and formulas of its own; a row's text is none of them."""
    assert plot_label("<b>a</b> $x$ &") == "&lt;b>a&lt;/b> &#36;x&#36; &amp;"
    assert len(plot_label("a" * 100)) == 28
