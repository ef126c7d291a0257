"""What has happened to a client's requests besides going well, for whoever watches over it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """Since the client was made."""

    servers_lost: int = 0  # attempts whose server died, or the connection to it, with the request in hand
    moved: int = 0  # requests made again elsewhere, or later, before anything of the answer had come
    continued: int = 0  # answers that went on behind the tokens that had come
    replayed: int = 0  # answers with a guide, made again from their beginning
    answers_lost: int = 0  # answers that had begun, and that no server could go on with
    quarantined: int = 0  # requests refused because servers had died with them
