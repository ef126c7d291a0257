"""The HTTP door: OpenAI's API and a playground page in front of a served Step-Audio-R1.

`step_audio_gateway.app.create_app` makes the ASGI application, `step_audio_gateway.server.serve` runs it.
"""
