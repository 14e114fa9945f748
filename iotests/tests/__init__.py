"""One module per theme; each test names the behaviour that it holds."""
