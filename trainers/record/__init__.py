"""The program of the stage `record`."""
