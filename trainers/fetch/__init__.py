"""The program of the stage `fetch`."""
