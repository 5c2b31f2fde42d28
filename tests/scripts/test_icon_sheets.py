"""Which icons a sheet shows."""

import icon_sheets
import pytest


class Icons:
    """Rows of concept, style, set and kind."""

    def __init__(self, rows: list[tuple[str, str, str, str]]):
        self.rows = rows

    def texts(self) -> dict[str, list[str]]:
        return dict(zip(("concept", "style", "set", "held_out"), map(list, zip(*self.rows, strict=True)), strict=True))


@pytest.fixture(autouse=True)
def two_rows(monkeypatch):
    monkeypatch.setattr(icon_sheets, "ROWS", 2)


def rows_of(style: str, of: str, count: int, kind: str = "") -> list[tuple[str, str, str, str]]:
    return [(f"thing {i}", style, of, kind) for i in range(count)]


def test_styles_are_of_different_sets_first_and_have_enough_rows_of_the_kind():
    rows = rows_of("a thin", "a", 3) + rows_of("a bold", "a", 5) + rows_of("b", "b", 2) + rows_of("c", "c", 1)
    assert icon_sheets.widest_styles(Icons(rows + rows_of("c", "c", 9, "set")), "") == ["a bold", "b", "a thin"]


def test_things_that_most_styles_have_come_first_and_only_those_of_the_kind():
    everywhere = [(thing, style, style, "") for thing in ("star", "moon") for style in "ab"]
    drawn = icon_sheets.drawings(Icons([*everywhere, ("rare", "a", "a", ""), ("cup", "b", "b", "set")]), "")
    rows = icon_sheets.crossed(drawn, ["a", "b"])
    assert rows == {thing: [(thing, "a"), (thing, "b")] for thing in ("moon", "star")}
    assert drawn["star", "b"] == 1 and ("cup", "b") not in drawn


def test_each_style_has_held_out_things_of_its_own():
    rows = rows_of("a", "a", 3, "set") + rows_of("b", "b", 2, "set")
    drawn = icon_sheets.drawings(Icons(rows), "set")
    of_rows = list(icon_sheets.apart(drawn, ["a", "b"]).values())
    assert [style for row in of_rows for _, style in row] == ["a", "b"] * 2
    cells = [cell for row in of_rows for cell in row]
    assert len(set(cells)) == 4 and set(cells) <= set(drawn)
