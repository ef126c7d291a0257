"""The voice: what an answer says, aloud. The published weights make no sound."""
