"""Studies: comparisons of guides and claims of papers, as data, tables and plots."""
