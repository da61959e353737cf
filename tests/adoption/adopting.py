"""A plugin of pytest, under which dynamax's own tests run with fastscan: ``python -m pytest -p adopting --pyargs dynamax``."""

import fastscan

ADOPTION = fastscan.adopt("dynamax")


def pytest_report_header():
    return f"dynamax is adopted: {len(ADOPTION.replaced)} references"
