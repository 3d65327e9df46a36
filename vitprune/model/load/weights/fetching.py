"""Weights of the Hub: fetched where it is reached; where it is not, what lies in its cache is taken, and nobody waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from vitprune.core.errors import UserError, one_line

PATIENCE = 6.0  # seconds for the Hub's first answer
# What the Hub's client raises without an answer: of httpx, httpx2 or requests, by its version.
UNREACHED = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
NOT_THERE = cast("tuple[type[Exception], ...]", (OSError, *UNREACHED))
NOT_FETCHED = cast("tuple[type[Exception], ...]", (ValueError, *NOT_THERE))  # the Hub's own errors are all of these


@contextmanager
def at_hand(what: str) -> Iterator[None]:
    """Nothing; where the Hub does not answer, huggingface_hub looks into its cache alone meanwhile, as under HF_HUB_OFFLINE,
    in the place of a minute of retries. Raises UserError where the cache has not what is asked for."""
    why = unreached()
    if why is None:
        yield
        return
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"{what}: is not in the Hub's cache, and {constants.ENDPOINT} is not reached ({why}); mend the network or "
            "HF_ENDPOINT, or take a file (model.checkpoint, --checkpoint) or a folder (local-dir:FOLDER)"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def unreached() -> str | None:
    """Why the Hub gives no answer within PATIENCE seconds, whatever the answer would be; None where it does. Where
    HF_HUB_OFFLINE is set, that it is."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    said: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            said.append(None)
        except Exception as error:  # of httpx or of requests, by the version of the client
            said.append(one_line(error))

    asking = threading.Thread(target=ask, name="vitprune-hub", daemon=True)  # looking up a name knows no time limit
    asking.start()
    asking.join(PATIENCE)
    return said[0] if said else f"no answer in {PATIENCE:.0f} s"
