"""`step-audio build`, `plan`, `convert`, `export-encoder`, `make-tiny`: arguments to calls."""
