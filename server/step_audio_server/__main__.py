"""`python -m step_audio_server` is the `step-audio` command."""

import sys

from step_audio_server.commands.cli import main

sys.exit(main())
