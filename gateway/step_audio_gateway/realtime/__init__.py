"""`WS /v1/realtime`: a spoken conversation in OpenAI's GA dialect.

`route` has the socket, `session` what is done about each event; all else is without sockets and knows no time but that
of the audio.
"""
