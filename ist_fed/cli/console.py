"""Where progress and warnings go; results go to stdout."""

from rich.console import Console

console = Console(stderr=True)
