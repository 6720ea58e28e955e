"""The part of OpenAI's Models API that the gateway leaves to this application: deletion."""
