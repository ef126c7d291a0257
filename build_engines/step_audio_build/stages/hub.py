"""The Hugging Face hub's refusals, as sentences that say what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from step_audio.errors import CheckpointError

# What the client has been built on from release to release; their errors have no class in common.
TRANSPORTS = ("requests", "urllib3", "httpx", "httpx2")


@contextlib.contextmanager
def in_words(what: str, offline: str) -> Iterator[None]:
    """Raises CheckpointError for the hub's errors, one line each. `offline`: what to do where it does not answer."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise CheckpointError(f"{what} asks for a licence: accept it on its page and set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{what} is not on the hub, or is private: check its name, set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{what}: the hub does not know this revision") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
        raise CheckpointError(f"the Hugging Face hub cannot be reached; {offline}") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise CheckpointError(f"the Hugging Face hub answered {status or 'with an error'}; {offline}") from None
    except BrokenPipeError:  # nobody reads how far it is
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] in TRANSPORTS or isinstance(error, ConnectionError | TimeoutError):
            raise CheckpointError(f"the Hugging Face hub cannot be reached; {offline}") from None
        raise
