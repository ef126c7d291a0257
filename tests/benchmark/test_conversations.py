"""The table of benchmarks/conversations.py."""

from __future__ import annotations

import math


def test_answers_that_never_came_are_told():
    from conversations import ConversationMode, Taken, table

    session, request = (ConversationMode(realtime, "thinks before", False) for realtime in (True, False))
    there, never = Taken(0.5, 1.0), Taken(math.nan, math.nan)
    taken = {(session, 1): [there], (session, 2): [there, never], (request, 1): [there._replace(turn=0.0)]}
    head, _, *rows = table(taken | {(request, 2): [never] * 2}, [1, 2]).splitlines()
    cells = [[cell.strip() for cell in row.split("|")[4:-1]] for row in rows]
    assert "2 at once" in head
    assert cells == [
        ["1000 ms, 1000 ms (50%)", "1000 ms, 1000 ms (50%), 1 of 2 without"],
        ["1000 ms, 1000 ms", "2 of 2 without"],
    ]
