"""The parts that all programs share: command line, run directory, events and errors."""
