"""Models and baselines measured on plain files: no log, no server, the whole catalogue ranked for every case."""
