"""`python -m deploy.cli` is `paceline`."""

from deploy.cli import main

main()
