"""Reports on finished runs: results, then the tables, figures and the page made from them."""
