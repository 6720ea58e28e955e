"""OpenAI's API below /v1, apart from generation: shapes only, each noun in a package of its own.

Tables and queries are in the packages of the nouns in `app`.
"""
