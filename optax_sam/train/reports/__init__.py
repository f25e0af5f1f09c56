"""Reports: HTML pages, plots, sentences and terminal tables."""
