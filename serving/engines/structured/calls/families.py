"""The families of models whose calls are read and generated, and how a model's family is found."""

from collections.abc import Collection

import regex

from serving.engines.structured.calls.arguments import JsonArguments
from serving.engines.structured.calls.notation import NotationArguments
from serving.engines.structured.calls.syntax import CallSyntax
from serving.engines.structured.calls.tagged import TaggedArguments
from trainers.configs.engines import ToolCallParser

JSON = JsonArguments()
PYTHON = NotationArguments(closing=")", assign="=", comma=", ")
PARAMETER_TAGS = TaggedArguments("<parameter=", ">\n", "\n</parameter>")
TOOL_CALLS, ARGS = "[TOOL_CALLS]", "[ARGS]"
CALL, CALL_END = "<tool_call>", "</tool_call>"
PYTHON_TAG, PYTHON_START, PYTHON_END = "<|python_tag|>", "<|python_start|>", "<|python_end|>"
NAME, ARGUMENTS = '{ "name": "', '", "arguments": '

QWEN = CallSyntax(
    ToolCallParser.qwen,
    JSON,
    before=f"\n{CALL}\n{NAME}",
    between=ARGUMENTS,
    after=f" }}\n{CALL_END}",
    markers=(CALL, CALL_END),
)
QWEN3_CODER = CallSyntax(
    ToolCallParser.qwen3_coder,
    PARAMETER_TAGS,
    before=f"\n{CALL}\n<function=",
    between=">",
    after=f"\n</function>\n{CALL_END}",
    # Larger models leave the outer tags out.
    optional=(CALL, CALL_END),
)
SEED_OSS = CallSyntax(
    ToolCallParser.seed_oss,
    PARAMETER_TAGS,
    before="\n<seed:tool_call>\n<function=",
    between=">",
    after="\n</function>\n</seed:tool_call>",
    markers=("<seed:tool_call>", "</seed:tool_call>"),
)
GLM45 = CallSyntax(
    ToolCallParser.glm45,
    TaggedArguments("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>"),
    before=f"\n{CALL}",
    after=f"\n{CALL_END}",
    markers=(CALL, CALL_END),
)
LLAMA3 = CallSyntax(
    ToolCallParser.llama3,
    JSON,
    begin=PYTHON_TAG,
    before=NAME,
    between='", "parameters": ',
    after=" }",
    separator="; ",
    optional=(PYTHON_TAG,),
    only_at_start=True,
)
PYTHONIC = CallSyntax(
    ToolCallParser.pythonic,
    PYTHON,
    begin=f"{PYTHON_START}[",
    between="(",
    separator=", ",
    end=f"]{PYTHON_END}",
    optional=(PYTHON_START, PYTHON_END),
    only_at_start=True,
)
LFM2 = CallSyntax(
    ToolCallParser.lfm2,
    PYTHON,
    begin="<|tool_call_start|>[",
    between="(",
    separator=", ",
    end="]<|tool_call_end|>",
    markers=("<|tool_call_start|>", "<|tool_call_end|>"),
)
OLMO3 = CallSyntax(
    ToolCallParser.olmo3,
    PYTHON,
    begin="<function_calls>\n",
    between="(",
    separator="\n",
    end="\n</function_calls>",
    markers=("<function_calls>", "</function_calls>"),
)
GEMMA4 = CallSyntax(
    ToolCallParser.gemma4,
    NotationArguments(closing="}", assign=":", delimiter='<|"|>', is_sorted=True),
    before="<|tool_call>call:",
    between="{",
    after="<tool_call|>",
    markers=("<|tool_call>", "<tool_call|>", '<|"|>'),
)
FUNCTIONGEMMA = CallSyntax(
    ToolCallParser.functiongemma,
    NotationArguments(closing="}", assign=":", delimiter="<escape>", is_sorted=True),
    before="<start_function_call>call:",
    between="{",
    after="<end_function_call>",
    markers=("<start_function_call>", "<end_function_call>", "<escape>"),
)
MISTRAL_LIST = CallSyntax(
    ToolCallParser.mistral,
    JSON,
    begin=f"{TOOL_CALLS}[",
    before=NAME,
    between=ARGUMENTS,
    after=" }",
    separator=", ",
    end="]",
    markers=(TOOL_CALLS,),
    call_id_length=9,
)
MISTRAL_NAMED = CallSyntax(
    ToolCallParser.mistral,
    JSON,
    before=TOOL_CALLS,
    between=ARGS,
    markers=(TOOL_CALLS, ARGS),
    call_id_length=9,
)
PHI4_MINI = CallSyntax(
    ToolCallParser.phi4_mini,
    JSON,
    begin="functools[",
    before=NAME,
    between=ARGUMENTS,
    after=" }",
    separator=", ",
    end="]",
    markers=("functools[",),
)
GRANITE = CallSyntax(
    ToolCallParser.granite,
    JSON,
    begin="<|tool_call|>[",
    before=NAME,
    between=ARGUMENTS,
    after=" }",
    separator=", ",
    end="]",
    markers=("<|tool_call|>",),
)
DEEPSEEK_MARKERS = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
DEEPSEEK_V3 = CallSyntax(
    ToolCallParser.deepseek_v3,
    JSON,
    begin="<｜tool▁calls▁begin｜>",
    before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    between="\n```json\n",
    after="\n```<｜tool▁call▁end｜>",
    separator="\n",
    end="<｜tool▁calls▁end｜>",
    markers=DEEPSEEK_MARKERS,
)
DEEPSEEK_V31 = CallSyntax(
    ToolCallParser.deepseek_v31,
    JSON,
    begin="<｜tool▁calls▁begin｜>",
    before="<｜tool▁call▁begin｜>",
    between="<｜tool▁sep｜>",
    after="<｜tool▁call▁end｜>",
    end="<｜tool▁calls▁end｜>",
    markers=DEEPSEEK_MARKERS,
)

# What a template contains of each form, those that contain a part of another form first.
SIGNS: tuple[tuple[str, CallSyntax], ...] = (
    (r"\[ARGS\]", MISTRAL_NAMED),
    (r"\[TOOL_CALLS\]", MISTRAL_LIST),
    (r"<\|tool_call>", GEMMA4),
    ("<start_function_call>", FUNCTIONGEMMA),
    (r"<｜tool▁sep｜>[^`]*```json|```json[^`]*<｜tool▁call▁end｜>", DEEPSEEK_V3),
    ("<｜tool▁calls▁begin｜>", DEEPSEEK_V31),
    ("<seed:tool_call>", SEED_OSS),
    ("<arg_key>", GLM45),
    ("<tool_call>(?s:.*)<function=", QWEN3_CODER),
    (r"<\|tool_(call|list)_start\|>", LFM2),
    ("<function_calls>", OLMO3),
    (r"<\|tool_call\|>", GRANITE),
    ("<tool_call>", QWEN),
    ("functools", PHI4_MINI),
    (r"\[\w+\(\w+ ?=", PYTHONIC),
    (r'<\|python_tag\|>|"parameters": ', LLAMA3),
)
# Forms that are known, but not read here, and what vLLM calls their parsers.
UNREAD_SIGNS = {
    r"<\|channel\|>(?s:.*)<\|call\|>|<\|start\|>(?s:.*)<\|channel\|>": "gpt-oss (openai in vLLM)",
    r"<\|tool_calls_section_begin\|>": "kimi_k2",
    "<minimax:tool_call>": "minimax_m2",
    "｜DSML｜": "deepseek_v32",
    r"<\|START_ACTION\|>": "cohere_command3",
    r"<\|action_start\|>": "internlm",
    "<longcat_tool_call>": "longcat",
    r"<\|tools_prefix\|>": "apertus",
    "<tool_calls>": "jamba or hunyuan_a13b",
    "<TOOLCALL>": "nemotron_json",
}
_BY_FAMILY = {syntax.family: syntax for _, syntax in reversed(SIGNS)}


class UnknownFamily(ValueError):
    """A chat template that shows no form of calls that is read here; the message contains the reason."""


def find_call_syntax(
    template: str, chosen: ToolCallParser | None, special_tokens: Collection[str] = ()
) -> CallSyntax:
    """Return the form of calls of the family that is chosen, or else of the one that a chat template shows.

    Raises:
        UnknownFamily: The template shows a form that is not read here, or none.
    """
    if chosen is ToolCallParser.mistral:
        return MISTRAL_NAMED if ARGS in template else MISTRAL_LIST
    if chosen is not None:
        return PYTHONIC if chosen is ToolCallParser.llama4_pythonic else _BY_FAMILY[chosen]
    for sign, family in UNREAD_SIGNS.items():
        if regex.search(sign, template):
            raise UnknownFamily(
                f"calls tools in the form of {family}, which vllm reads and this engine does not"
            )
    for sign, syntax in SIGNS:
        if regex.search(sign, template):
            return syntax
    if "<|tool_call_start|>" in special_tokens:
        # LFM2.5's template shows no call.
        return LFM2
    raise UnknownFamily("does not show how it calls tools")
