"""The page of a report."""

from __future__ import annotations

import re
from pathlib import Path

from prunerob.cli import main


def test_the_page_needs_no_other_file(sweep: Path) -> None:
    main(["report", str(sweep), "--output", "out", "--title", "Are <we> robust?"])
    page = Path("out/report.html").read_text()
    assert "<h1>Are &lt;we&gt; robust?</h1>" in page
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "weight 50 %, from scratch" in page
    latex = Path("out/accuracy.tex").read_text()
    assert r"weight 50 \% & " in latex
    assert r"\pm" in latex
