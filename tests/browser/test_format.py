"""The page and the terminal print a number in the same way."""

from typing import Any

from playwright.sync_api import Page
from seeds import SeededServer

from kto_sweep.text import duration, hours, number

TEXTS: list[tuple[Any, str]] = [
    *((None, "-"), (True, "true"), (False, "false"), (0, "0"), (-0.0, "0"), (5, "5"), (5.0, "5")),
    *((32, "32"), (-7, "-7"), (1e6, "1000000"), (4294967295, "4294967295"), (-1e9, "-1000000000")),
    *((9999999999, "9999999999"), (1e10, "1e+10"), (2**53 - 1, "9.007e+15"), (3.4e38, "3.4e+38")),
    *((0.5, "0.5"), (0.49999, "0.5"), (0.49994, "0.4999"), (0.1 + 0.2, "0.3"), (1 / 3, "0.3333")),
    *((2.0625, "2.063"), (12.125, "12.13"), (-12.125, "-12.13"), (1234.5, "1235"), (12345.6, "12350")),
    *((123456.7, "123500"), (999949.9, "999900"), (999999.6, "1e+06"), (1234567.8, "1.235e+06")),
    *((0.001, "0.001"), (0.00099996, "0.001"), (0.0009994, "9.994e-04"), (2.3e-6, "2.3e-06")),
    *((-5e-7, "-5e-07"), (1e-10, "1e-10"), (1e-300, "1e-300"), (5e-324, "4.941e-324")),
    *((1.7976931348623157e308, "1.798e+308"), ("1e-5", "1e-5"), ("", ""), ("bfloat16", "bfloat16")),
]
SECONDS = [0, 0.4, 89.4, 90, 754.2, 5399, 5400, 40_000, 172_799, 172_800, 400_000]


def formatted(page: Page, seeded: SeededServer, function: str, values: list[Any]) -> list[str]:
    """What a function of the page's format.js makes of these values."""
    page.goto(seeded.grid.path)
    script = """async ([name, values]) => {
        const script = document.querySelector("script[type=module]").src;
        const format = await import(script.replace("sweep_page", "format"));
        return values.map((value) => format[name](value));
    }"""
    return list(page.evaluate(script, [function, values]))


def test_page_and_terminal_print_the_same_number(page: Page, seeded: SeededServer) -> None:
    values = [value for value, _ in TEXTS]
    expected = [text for _, text in TEXTS]
    assert formatted(page, seeded, "show", values) == expected
    assert [number(value) for value in values] == expected


def test_page_and_terminal_print_the_same_time(page: Page, seeded: SeededServer) -> None:
    assert formatted(page, seeded, "duration", SECONDS) == [duration(seconds) for seconds in SECONDS]
    assert formatted(page, seeded, "hours", SECONDS) == [hours(seconds / 3600) for seconds in SECONDS]
