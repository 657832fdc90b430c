"""Events into a release: examples, fitting, judging, the registry of releases and the schedule of runs."""
