"""The command line `tunesmith`: one module for each group of commands."""
