"""The plot of the page of benchmarks."""

import xml.etree.ElementTree as ElementTree

import pytest
from bench.plot import Panel, size_label, svg

SVG = "{http://www.w3.org/2000/svg}"
PANEL = Panel("messages/s", {"Mailrail": [(2048, 1500.0), (102_400, 150.0)], "Postfix": [(2048, 600.0)]})


def test_a_plot_is_xml_with_a_line_for_each_system_in_each_panel() -> None:
    drawn = ElementTree.fromstring(svg([PANEL, PANEL]))
    assert len(drawn.findall(f".//{SVG}polyline")) == 4
    assert [text.text for text in drawn.iter(f"{SVG}text")][-2:] == ["Mailrail", "Postfix"]


def test_greater_values_are_drawn_higher_and_larger_messages_further_right() -> None:
    drawn = ElementTree.fromstring(svg([PANEL]))
    line = drawn.findall(f".//{SVG}polyline")[0]
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line.attrib["points"].split())
    assert x1 < x2
    assert y1 < y2


def test_a_panel_without_figures_says_so() -> None:
    assert "not measured" in svg([Panel("CPU", {})])


def test_names_are_text_and_never_markup() -> None:
    drawn = ElementTree.fromstring(svg([Panel("<a>", {"<b>&": [(2048, 1.0)]})]))
    assert "<b>&" in [text.text for text in drawn.iter(f"{SVG}text")]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_what_has_no_logarithm_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="CPU, Mailrail: only finite values above 0"):
        svg([Panel("CPU", {"Mailrail": [(2048, value)]})])


@pytest.mark.parametrize(
    ("octets", "label"),
    [(2048, "2 KiB"), (102_400, "100 KiB"), (10 << 20, "10 MiB"), (500, "500"), (127_000, "124 KiB")],
)
def test_sizes_are_labelled_as_people_say_them(octets: int, label: str) -> None:
    assert size_label(octets) == label
