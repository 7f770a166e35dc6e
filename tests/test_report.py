"""A report is one file that needs nothing else, escapes what it is given and appears whole or not at all."""

from __future__ import annotations

import re

import pytest

from interp.report import Report, Table


@pytest.fixture
def page() -> Report:
    page = Report("Fits & <figures>", "What `x < 3` means.")
    page.numbers([("4,096", "pairs <here>")])
    page.section("Probe", "One `probe` per pair.")
    page.table(Table("Best", ["class", "F1"], [["<b>", "0.91"], ["dog", "–"]], "Held out."))
    page.footer("end")
    return page


def test_text_is_escaped_and_code_is_set_as_code(page):
    text = page.html()
    assert "<h1>Fits &amp; &lt;figures&gt;</h1>" in text
    assert "What <code>x &lt; 3</code> means." in text
    assert "<b>" not in text
    assert "pairs &lt;here&gt;" in text


def test_a_lone_backtick_stays():
    page = Report("a ` b", "c")
    assert "<h1>a ` b</h1>" in page.html()


def test_columns_of_numbers_are_aligned_to_the_right(page):
    text = page.html()
    assert '<th>class</th><th class="number">F1</th>' in text
    assert '<td class="number">0.91</td>' in text
    assert '<td class="number">–</td>' in text


def test_a_table_reads_well_in_a_terminal():
    table = Table("Best", ["class", "F1"], [["dog", "0.9"], ["animal", "0.25"]], "Held out.")
    assert table.text().splitlines() == [
        "Best",
        "  class     F1",
        "  dog      0.9",
        "  animal  0.25",
        "Held out.",
    ]


def test_a_row_of_the_wrong_length_is_refused(page):
    with pytest.raises(ValueError, match="a row of 1 cells for 2 columns"):
        page.table(Table("Bad", ["a", "b"], [["only one"]]))


def test_pictures_are_inside_and_nothing_else_is_fetched(page):
    from matplotlib.figure import Figure

    light, dark = Figure(figsize=(4, 2)), Figure(figsize=(4, 2))
    page.figure(light, dark, 'a "caption"')
    text = page.html()
    assert text.count("data:image/png;base64,") == 2
    assert "(prefers-color-scheme: dark)" in text
    assert 'alt="a &quot;caption&quot;"' in text
    fetched = re.findall(r'(?:src|srcset|href)="(?!data:)([^"]*)"', text)
    assert fetched == []
    assert "<script" not in text
    assert "url(" not in text


def test_a_page_appears_whole_or_not_at_all(page, tmp_path, monkeypatch):
    target = tmp_path / "new" / "report.html"
    assert page.write(target) == target
    first = target.read_text(encoding="utf-8")
    assert first == page.html()

    monkeypatch.setattr(Report, "html", lambda self: "\ud800")  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        page.write(target)
    assert target.read_text(encoding="utf-8") == first
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]
