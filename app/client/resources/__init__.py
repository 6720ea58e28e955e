"""The collections of a client, such as `client.jobs`: creating, listing and finding objects."""
