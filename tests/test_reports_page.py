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
    links = set(re.findall(r'(?:src|href)="([^"]*)"', page))
    runs = {str(folder.relative_to(sweep)) for folder in sweep.glob("seed*/*")}
    places = {link for link in links if link[0] != "#"}
    assert {Path("out", place).resolve() for place in places} == {
        (sweep / r).resolve() for r in runs
    }
    assert {link[1:] for link in links if link[0] == "#"} <= set(re.findall(r' id="([^"]+)"', page))
    assert re.search(r'<p class="headline">PGD. (Weights|At most weights), 50 %: ', page)
    assert "weights, 50 %, from scratch" in page
    latex = Path("out/accuracy.tex").read_text()
    assert r"weights, 50 \% & " in latex
    assert r"\pm" in latex
