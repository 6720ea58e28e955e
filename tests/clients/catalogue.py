"""The clients of the matrix, each with its environment, its program and the package that is tested."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial


class Area(StrEnum):
    """What a program does with the service."""

    generation = "generation"
    training = "training"


class Runtime(StrEnum):
    """What runs a program."""

    python = "python"
    node = "node"
    java = "java"


@dataclass(frozen=True)
class ClientProgram:
    """One row of the matrix: `package` is the installed distribution whose version is shown."""

    name: str
    runtime: Runtime
    environment: str
    program: str
    package: str
    area: Area = Area.generation
    note: str = ""
    variables: Mapping[str, str] = field(default_factory=dict, hash=False)


_python = partial(ClientProgram, runtime=Runtime.python)
_node = partial(ClientProgram, runtime=Runtime.node, environment="node")
OPENAI_VERSIONS = ("openai-1", "openai-2", "openai-3")

CLIENTS = (
    *(
        _python(
            name=f"openai-python, {api}",
            environment=environment,
            program=f"openai_{api}.py",
            package="openai",
        )
        for environment in OPENAI_VERSIONS
        for api in ("chat", "responses")
    ),
    *(
        _node(name=f"openai-node, {api}", program=f"openai_{api}.mjs", package="openai")
        for api in ("chat", "responses")
    ),
    _python(
        name="LangChain",
        environment="langchain",
        program="langchain_chat.py",
        package="langchain-openai",
        note="tools by an agent; JSON by both methods of `with_structured_output`",
    ),
    _python(
        name="LlamaIndex",
        environment="llama-index",
        program="llama_index_chat.py",
        package="llama-index-llms-openai-like",
        note="tools by a `FunctionAgent`",
    ),
    _python(
        name="LiteLLM SDK",
        environment="litellm",
        program="litellm_chat.py",
        package="litellm",
        note="providers `openai` and `hosted_vllm`",
    ),
    _python(
        name="Pydantic AI",
        environment="pydantic-ai",
        program="pydantic_ai_chat.py",
        package="pydantic-ai-slim",
        note="the required tool is that of an `output_type`; JSON is `NativeOutput`",
    ),
    *(
        _python(
            name=f"OpenAI Agents, {api}",
            environment="openai-agents",
            program="openai_agents_chat.py",
            package="openai-agents",
            variables={"AGENTS_API": api},
        )
        for api in ("chat", "responses")
    ),
    *(
        _node(
            name=f"Vercel AI SDK, {provider}",
            program="ai_sdk.mjs",
            package=package,
            variables={"AI_PROVIDER": provider},
            note=f"`{package}`",
        )
        for provider, package in (
            ("compatible", "@ai-sdk/openai-compatible"),
            ("chat", "@ai-sdk/openai"),
            ("responses", "@ai-sdk/openai"),
        )
    ),
    ClientProgram(
        name="Java HttpClient",
        runtime=Runtime.java,
        environment="java",
        program="Chat.java",
        package="java",
        note="asks for an upgrade to HTTP/2; no JSON library",
    ),
    *(
        _python(
            name="openai-python",
            environment=environment,
            program="openai_training.py",
            package="openai",
            area=Area.training,
        )
        for environment in OPENAI_VERSIONS
    ),
    _node(name="openai-node", program="openai_training.mjs", package="openai", area=Area.training),
)
