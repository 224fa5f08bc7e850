"""What the tables are made of; and a package that is not installed is a line, not the end."""

from bench.side_by_side import Pair, Side, Turn, Work, _measure, markdown, measure


def side(name: str, needs: str | None = None) -> Side:
    return Side(name, lambda: Turn(lambda: 1), "numbers", needs)


def compared(ratio: float) -> dict:
    return {"images_per_second": {"ours": 1000 * ratio, "peer": 1000.0}, "ratio": ratio, "ratio_range": [1.0, 9.0]}


def row(**changes) -> dict:
    memory = {"ours": 10.0, "peer": 20.0}
    return {"work": "a step", "against": "them", **compared(3.0), "at_least": None, "memory_mb": memory, **changes}


def test_a_peer_that_is_not_installed_is_one_line():
    lines = []
    work = Work("name", "title", side("moco"), (side("lightly, 2 workers", "no_such_package"),))
    (only,) = measure(work, 1, lines.append)
    assert only["not_measured"] == "no_such_package is not installed"
    assert lines == ["title: lightly, 2 workers is not measured: no_such_package is not installed"]
    assert markdown([only, row()])[2] == (
        "| title | lightly, 2 workers | not measured: no_such_package is not installed |  |  |  |"
    )


def test_equal_precision_has_columns_of_its_own():
    head, _, first, second = markdown([row(equal={"float32": compared(1.5), "bf16": compared(1.25)}), row(equal={})])
    assert head == "| work | against | ours | theirs | ratio | both float32 | both bf16 | memory |"
    assert first == (
        "| a step | them | 3,000 | 1,000 | **3.0** (1.0 to 9.0) | **1.5** (1.0 to 9.0) | **1.2** (1.0 to 9.0) "
        "| 10 MB / 20 MB |"
    )
    assert second == "| a step | them | 3,000 | 1,000 | **3.0** (1.0 to 9.0) |  |  | 10 MB / 20 MB |"


def test_each_pair_is_compared_with_itself(monkeypatch):
    """Sides of known speeds, without processes."""
    rates = {"ours": 60.0, "one": 20.0, "ours, float32": 30.0, "one, float32": 15.0, "least": 80.0}

    class Child:
        def __init__(self, side: Side, cores: int) -> None:
            self.side, self.rates, self.seconds, self.memory_mb = side, [], [], 1.0

        def __enter__(self) -> "Child":
            return self

        def __exit__(self, *_: object) -> None: ...

        def warm_up(self) -> None: ...

        def turn(self) -> None:
            self.rates.append(rates[self.side.name])

    monkeypatch.setattr("bench.side_by_side._Child", Child)
    equal = (Pair("float32", side("ours, float32"), side("one, float32")),)
    work = Work("name", "title", side("ours"), (side("one"),), equal=equal, floor=side("least"), share=0.7)
    (only,) = _measure(work, list(work.peers), 2, lambda line: None)
    assert only["ratio"] == 3.0
    assert only["equal"]["float32"]["ratio"] == 2.0
    assert only["equal"]["float32"]["images_per_second"] == {"ours": 30.0, "peer": 15.0}
    assert (only["floor"]["share"], only["floor"]["met"]) == (0.75, True)
    head, _, line = markdown([only])
    assert "| of the floor |" in head
    assert "| **75%** (75% to 75%); 70% wanted: met |" in line
