"""`python -m ist_fed`, the same as `ist-fed`."""

from ist_fed.cli import main

main()
