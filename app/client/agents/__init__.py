"""The tools of agents: `tunesmith mcp` offers the client by the Model Context Protocol."""
