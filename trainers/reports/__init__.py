"""The folder that an evaluation or a comparison leaves: its rows and its reports."""
