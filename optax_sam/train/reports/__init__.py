"""Reports: pages, their plots and words, and tables for a terminal."""
