"""The work copy of the model repository that a server is started on."""
