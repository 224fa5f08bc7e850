"""The record table: README.md has the rules and the rows, `python -m bench.records` makes a row."""
