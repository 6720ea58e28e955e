"""Models and datasets on this host: each name is resolved once, and what it names is verified."""
