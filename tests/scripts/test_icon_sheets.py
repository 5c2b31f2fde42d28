"""Which icons a sheet shows."""

import icon_sheets


class Icons:
    """Rows of concept, style, set and kind."""

    def __init__(self, rows: list[tuple[str, str, str, str]]):
        self.rows = rows

    def texts(self) -> dict[str, list[str]]:
        return dict(zip(("concept", "style", "set", "held_out"), map(list, zip(*self.rows, strict=True)), strict=True))


def test_styles_are_of_different_sets_the_widest_first():
    rows = [("star", f"{of} {style}", of, "") for of, n in (("a", 3), ("b", 2)) for style in ("x", *"y" * n)]
    assert icon_sheets.widest_styles(Icons([*rows, *[("cup", "b x", "b", "set")] * 9]), "") == ["a y", "b y"]


def test_things_that_most_styles_have_come_first_and_only_those_of_the_kind(monkeypatch):
    monkeypatch.setattr(icon_sheets, "ROWS", 2)
    everywhere = [(thing, style, style, "") for thing in ("star", "moon") for style in "ab"]
    drawn = icon_sheets.drawings(Icons([*everywhere, ("rare", "a", "a", ""), ("cup", "b", "b", "set")]), "")
    rows = icon_sheets.crossed(drawn, ["a", "b"])
    assert rows == {thing: [(thing, "a"), (thing, "b")] for thing in ("moon", "star")}
    assert drawn["star", "b"] == 1 and ("cup", "b") not in drawn


def test_each_style_has_held_out_things_of_its_own():
    rows = [(f"{style}{i}", style, style, "set") for style in "ab" for i in range(3)]
    of_rows = icon_sheets.apart(icon_sheets.drawings(Icons(rows), "set"), ["a", "b"])
    assert len(of_rows) == 3
    assert {cell for row in of_rows.values() for cell in row} == {(thing, style) for thing, style, _, _ in rows}
