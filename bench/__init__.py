"""zfast against named peers: pytest-benchmark groups, and the report of their ratios."""
