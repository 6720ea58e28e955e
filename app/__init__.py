"""The control plane: HTTP and SQL. It imports no ML package."""

from trainers import delay_collections

delay_collections()
