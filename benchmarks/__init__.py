"""How fast, beside whom, on what: see README.md here. `python -m benchmarks --help` runs the preset of this machine."""
