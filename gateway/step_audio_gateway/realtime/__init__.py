"""`WS /v1/realtime`: a spoken conversation in OpenAI's GA dialect.

`route` and `connection` have the socket, `session` what is done about each event; all else knows neither.
"""
