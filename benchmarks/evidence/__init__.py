"""Claims of the papers, tested on problems for two CPU cores."""
