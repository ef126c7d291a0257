"""How fast a served model answers: load over gRPC and HTTP, figures, and where the time goes."""
