"""Every cell of the decision table, written by hand from the rules: what each host needs of TLS."""

from pathlib import Path

import pytest

from mailrail.core.outbound.tls_endings import ENDINGS, TlsEnding
from mailrail.core.tlspolicy.table import LEGEND, TABLES, Table

SECTIONS = [
    section.splitlines() for section in Path(__file__).with_name("decision-table.txt").read_text().split("\n== ")[1:]
]
EXPECTED = {
    title: [[cell.strip() for cell in line.split("|")] for line in rows if line] for title, _, *rows in SECTIONS
}
"""By title of the table: its rows, each with its label first."""

CELLS = [
    pytest.param(table, row, column, id=f"{table.title}: {table.rows[row][0]} / {table.columns[column][0]}")
    for table in TABLES
    for row in range(len(table.rows))
    for column in range(len(table.columns))
]


@pytest.mark.parametrize(("table", "row", "column"), CELLS)
def test_each_cell_of_the_table_is_as_the_rules_have_it(table: Table, row: int, column: int) -> None:
    """RTLS-11a, RTLS-12a, RTLS-13a, RTLS-17a, RTLS-22a, RTLS-25a, STS-08b, STS-10a, STS-12a, STS-14a, STS-15a, STS-21a,
    STS-24c, DANE-03a, DANE-05a, DANE-14a, DANE-15a, DANE-16a, DANE-20a."""
    label, *cells = EXPECTED[table.title][row]
    assert label == table.rows[row][0]
    assert table.cells()[row][column] == cells[column]


def test_the_tables_leave_no_row_or_column_out() -> None:
    assert list(EXPECTED) == [table.title for table in TABLES]
    for table in TABLES:
        grid = EXPECTED[table.title]
        assert (len(grid), len(grid[0]) - 1) == (len(table.rows), len(table.columns))


def test_each_word_of_the_tables_has_its_meaning_on_the_page() -> None:
    known = " ".join(word for word, _ in LEGEND).replace("5.7.x", "5.7.5 5.7.10 5.7.30").replace("...", "")
    words = {
        word for table in TABLES for cells in table.cells() for cell in cells for word in cell.split(" (")[0].split()
    }
    assert {word.strip(",") for word in words} - set(known.replace("(", " ").replace(")", " ").split()) == set()


@pytest.mark.parametrize(
    ("ending", "result"),
    list(
        zip(
            ENDINGS,
            [
                "tried later, 4.7.5",
                "tried later, 4.7.5",
                "fails, 5.7.5",
                "as for other mail: replies and faults decide",
                "fails, 5.7.30",
                "fails, 5.7.10",
                "fails, 5.7.30",
                "fails, 5.7.30",
                "as for other mail: replies and faults decide",
                "fails, 5.7.30",
                "all hosts once more, without any header of the original, as mail that says nothing of TLS",
                "as for other mail: replies and faults decide",
            ],
            strict=True,
        )
    ),
)
def test_what_becomes_of_a_message_that_no_host_took(ending: TlsEnding, result: str) -> None:
    """RTLS-15a, RTLS-16a, RTLS-17a, RTLS-21a, STS-14a."""
    assert ending.result() == result
