"""`python -m vlkd.cli` is `vlkd`."""

from vlkd.cli import main

main()
