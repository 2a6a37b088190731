"""Every error that ist_fed raises on purpose.

A message says the invariant, what was found, and what to do. The command line prints it without a traceback.
"""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb


class IstFedError(Exception):
    """Base of every error below."""


class AxesError(IstFedError, ValueError):
    """A model cannot be cut as asked: a size is ignored, mixed with another, or breaks the symmetry law."""


class RuleError(IstFedError, ValueError):
    """A rule cannot deal the units out as asked."""


class ScenarioError(IstFedError, ValueError):
    """A scenario file or an override is wrong."""


class TaskError(IstFedError, ValueError):
    """A task cannot be found, or does not give what the `Task` protocol asks."""


class TrainingError(IstFedError, RuntimeError):
    """Local training cannot go on: no data, or a loss that is not finite."""


class WireError(IstFedError, ValueError):
    """A message is not what the other side agreed to."""


class RoundError(IstFedError, RuntimeError):
    """A round brought too few usable replies to go on."""


class RunError(IstFedError, RuntimeError):
    """A run folder or a checkpoint is missing, taken, corrupt, or belongs to another scenario."""


class EngineError(IstFedError, RuntimeError):
    """An engine could not start or finish a run."""


class FleetError(IstFedError):
    """A client and its server could not speak."""


class FleetUnreachable(FleetError, ConnectionError):
    """Nobody answers, or not in time, or not the server; it may come back."""


class FleetRefused(FleetError):
    """The server answered, and will not have this client or what it sent."""


class PkiError(IstFedError, RuntimeError):
    """A key, certificate, request, kit or federation's folder is missing, taken, forged, or open to others."""


class SecureError(IstFedError, RuntimeError):
    """The secure protocol was broken off. Whoever raises this has erased its secrets, and the message names none."""


class SmallCohort(SecureError):
    """Fewer members than may hide one another."""


class ForgedIdentity(SecureError):
    """A certificate, a signature or a key is not who it says it is of."""


class OtherModel(SecureError):
    """What was sent to be trained is not what was announced to everyone."""


class Disagreement(SecureError):
    """Members were told different things, or what they cannot all agree on."""


class DoubleRequest(SecureError):
    """A step was asked for twice, or a round that is over; answering could give a secret away."""


class FleetUnknown(FleetRefused):
    """The server does not know this client's key, or not yet."""


class FleetOver(FleetRefused):
    """The run that a message belongs to is over; what belongs to it is of no use any more."""


class PrivacyError(IstFedError, ValueError):
    """A guarantee cannot be given as asked, or its budget is spent."""


class Interrupted(IstFedError):
    """The run was stopped by the user after its state was saved; the message says how to resume."""


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # of torch's allocators


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory, here or on a GPU."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    return isinstance(error, MemoryError) or said


def out_of_room(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk is full or a quota used up."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def asking(asked: str) -> Iterator[None]:
    """Around a call of a task's own code: what it raises is said in a sentence, unless the machine is short of room.

    Raises:
        TaskError: it raised something; the cause is kept.
    """
    try:
        yield
    except IstFedError:
        raise
    except Exception as error:
        if out_of_memory(error) or out_of_room(error):
            raise
        raise TaskError(
            f"the task's {asked} must not fail, but raised {raised(error)}; mend it (`ist-fed --debug` shows the "
            f"whole traceback)"
        ) from error


def words(error: BaseException) -> str:
    """Of what kind an error is, and what it says, unless that fails, too."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def raised(error: BaseException) -> str:
    """What a user's code raised, and in which line of it, as far as that is known.

    A file has its name only: a server may be told, and need not know where things lie on a client.
    """
    said = words(error).partition("\n")[0].removesuffix(": ")
    known = {"ist_fed", "torch", *sys.stdlib_module_names}
    places = [
        (str(frame.f_globals.get("__name__")).partition(".")[0], frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
    ]
    foreign = [place for place in places if place[0] not in known]
    own = [place for place in foreign if place[0] == foreign[0][0]]  # and not of a package that it uses
    return f"{said} ({Path(own[-1][1]).name}, line {own[-1][2]})" if own else said


def nearest(word: str, known: "list[str] | tuple[str, ...]") -> str:
    """Name what may have been meant: `; did you mean 'x'?`, or else the list of what is known."""
    from difflib import get_close_matches

    match = get_close_matches(word, known, n=1)
    if match:
        return f"; did you mean '{match[0]}'?"
    return f"; known: {', '.join(sorted(known))}" if known else ""
