"""The keeper of a cloud's hosts, which launches and terminates their machines as the rows say."""
