"""`python -m ist_fed`, the same as `ist-fed`; Ctrl-C is heeded while all that the commands need is still imported."""

import os
import signal
import sys

STOPPED = 130
"""What a shell gives for a command that Ctrl-C ended."""


def stopped(said: str = "stopped; nothing was lost") -> int:
    """Say that Ctrl-C was heeded; gives the exit code."""
    print(said, file=sys.stderr)
    return STOPPED


def main() -> None:
    """Import the command line, and run it."""
    # What gRPC would print is said in sentences. It reads this when it is first imported, by whichever module.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from ist_fed.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(stopped())
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the last word is said; one more Ctrl-C ends it without another


if __name__ == "__main__":
    main()
